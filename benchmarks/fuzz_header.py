"""Hostile headers and indexes: `python -m benchmarks.fuzz_header --count 1000000 --seconds 500 --seed 1`.

Valid headers are mutated (numbers, strings, fields, bytes, lengths) and read by this program and by the safetensors
library: what one accepts the other must accept, with the same tensors, but for EXCEPTIONS. Indexes of shards must give
a model of files in their own folder, or one sentence. Exit code 1 and the input in --keep for anything else.
"""

import argparse
import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError, deserialize

from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.files.header import read_header

from .hostile import SHARDS, mutated_header, mutated_index, write_shards

#: What this program refuses although the library takes it, and why.
EXCEPTIONS = {
    "a key twice": "the format forbids it; the library takes the last one, and which is meant nobody knows",
    "an entry that is no object": "the format says object; the library's parser takes a list in its place",
    "a dtype that is no string": "the format says string; the library's parser takes {\"U8\": null} in its place",
}
#: The longest message, and the longest time (s) for one small file on a busy machine.
_LONGEST, _SLOWEST = 2100, 20.0
_INDEX_EVERY = 20


class Disagreement(Exception):
    """What went wrong with one input."""


def judge(content: bytes, path: Path) -> str:
    """How both readers take a file of this content, in a few words. Raises Disagreement; writes `path`."""
    path.write_bytes(content)
    theirs, why = _library(content)
    try:
        infos = read_header(path)[0]
    except TpecError as error:
        _check_sentence(str(error))
        if theirs is None:
            return "both refuse"
        exception = _exception(content)
        if exception is None:
            raise Disagreement(f"the library accepts what is refused: {error}") from None
        return f"only the library accepts: {exception}"
    if theirs is None:
        if "unknown variant" in why and "F8_" in why + content.decode("latin-1"):
            return "a dtype that this version of the library does not know"
        raise Disagreement(f"accepted, though the library says: {why}")
    found = {info.name: (list(info.shape), content[info.start:info.start + info.nbytes]) for info in infos.values()}
    if found != theirs:
        raise Disagreement("both accept, but with different tensors")
    return "both accept"


def _library(content: bytes) -> tuple[dict[str, tuple[list[int], bytes]] | None, str]:
    """Shape and bytes of every tensor as the library has them, or None and its reason."""
    try:
        return {name: (list(tensor["shape"]), bytes(tensor["data"])) for name, tensor in deserialize(content)}, ""
    except SafetensorError as error:
        return None, str(error)


def _check_sentence(text: str) -> None:
    if not text.isprintable() or len(text) > _LONGEST or not text.endswith((".", ")", "`")):
        raise Disagreement(f"not one short sentence: {text[:300]!r}")


def _exception(content: bytes) -> str | None:
    """The entry of EXCEPTIONS that explains a refusal; found without this program's own parser."""
    doubled = []

    def pairs(found: list[tuple[str, object]]) -> dict[str, object]:
        doubled.extend([1] * (len(found) != len(dict(found))))
        return dict(found)

    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + length], object_pairs_hook=pairs)
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    if doubled:
        return "a key twice"
    if not all(isinstance(entry, dict) for entry in entries):
        return "an entry that is no object"
    if not all(isinstance(entry["dtype"], str) for entry in entries):
        return "a dtype that is no string"
    return None


def judge_index(text: bytes, path: Path) -> str:
    """How an index of this text is taken, whose shards lie beside `path`. Raises Disagreement."""
    path.write_bytes(text)
    try:
        checkpoint = open_checkpoint(path)
    except TpecError as error:
        _check_sentence(str(error))
        return "index refused"
    if any(file.parent != path.parent or file.name not in SHARDS for file in checkpoint.files):
        raise Disagreement("a file out of the folder is read")
    if not set(json.loads(text.removeprefix(b"\xef\xbb\xbf"))["weight_map"]) <= checkpoint.tensors.keys():
        raise Disagreement("a tensor of the index is not there")
    return "index accepted"


def cases(seed: int) -> Iterator[tuple[Callable[[bytes, Path], str], bytes]]:
    """Endless inputs, the same for the same seed."""
    source = random.Random(seed)
    while True:
        for _ in range(_INDEX_EVERY - 1):
            yield judge, mutated_header(source)
        yield judge_index, mutated_index(source)


def run(count: int, seconds: float, seed: int, folder: Path) -> tuple[Counter[str], list[tuple[str, bytes]], float]:
    """Outcomes, faults with their inputs, and the longest time (s) that one input took."""
    outcomes: Counter[str] = Counter()
    faults: list[tuple[str, bytes]] = []
    write_shards(folder)
    end, slowest = time.monotonic() + seconds, 0.0
    for ask, content in cases(seed):
        before = time.monotonic()
        if sum(outcomes.values()) >= count or before > end or len(faults) > 20:
            return outcomes, faults, slowest
        try:
            outcomes[ask(content, folder / ("m.safetensors" if ask is judge else "index.json"))] += 1
        except Exception as error:  # noqa: BLE001 - whatever comes is what is looked for
            outcomes["FAULT"] += 1
            faults.append((f"{type(error).__name__}: {error}", content))
        slowest = max(slowest, time.monotonic() - before)
        if slowest > _SLOWEST:
            faults.append((f"took {slowest:.0f} s", content))
    raise AssertionError("cases never end")


def _peak_mib() -> str:
    if sys.platform == "win32":
        return "unknown memory"
    import resource

    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="mutations (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=500, help="stop after so long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that fail")
    parser.add_argument("--folder", type=Path, help="where to write the files (default: in memory where there is such)")
    options = parser.parse_args()
    place = options.folder or Path("/dev/shm")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as folder:
        outcomes, faults, slowest = run(options.count, options.seconds, options.seed, Path(folder))
    print(f"{sum(outcomes.values())} inputs in {time.monotonic() - began:.0f} s, the slowest {slowest:.2f} s, "
          f"at most {_peak_mib()}, seed {options.seed}")
    for outcome, number in outcomes.most_common():
        print(f"{number:9}  {outcome}")
    for at, (fault, content) in enumerate(faults):
        print(f"FAULT {fault[:300]}\n      {content[:300]!r}")
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"fault-{options.seed}-{at}.bin").write_bytes(content)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
