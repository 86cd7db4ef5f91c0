"""As `fuzz_header`, but guided by coverage: atheris mutates what reached new lines of the reader.

    python -m benchmarks.fuzz_guided --seconds 600
    python -m benchmarks.fuzz_guided --seconds 600 --what index

Every input is judged as there: by this program and by the safetensors library. It begins with mutated headers and with
the corpus of the tests; needs the package atheris (Linux). Ends with the first disagreement or crash, whose input it
leaves in --keep.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tpec.files"]):
    from .fuzz_header import judge, judge_index

from .common import ROOT
from .hostile import mutated_header, mutated_index, write_shards

_SEEDS = 300
_MOST_BYTES = 4096


def write_corpus(folder: Path, what: str) -> None:
    source = random.Random(0)
    make = mutated_header if what == "header" else mutated_index
    for number in range(_SEEDS):
        (folder / f"{number}").write_bytes(make(source))
    if what == "header":
        for path in (ROOT / "tests" / "data" / "headers").iterdir():
            (folder / path.name).write_bytes(path.read_bytes()[:_MOST_BYTES])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--what", choices=("header", "index"), default="header")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fault-"), help="beginning of the names of failing inputs")
    options = parser.parse_args()
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as folder:
        work, corpus = Path(folder, "work"), Path(folder, "corpus")
        work.mkdir()
        corpus.mkdir()
        write_shards(work)
        write_corpus(corpus, options.what)
        ask, name = (judge, "m.safetensors") if options.what == "header" else (judge_index, "index.json")

        def one(content: bytes) -> None:
            ask(content, work / name)

        atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={options.seconds}", f"-max_len={_MOST_BYTES}",
                       f"-seed={options.seed}", f"-artifact_prefix={options.keep}", "-print_final_stats=1"], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
