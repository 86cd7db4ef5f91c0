"""This tree of the project beside another one, a release or a commit before a change, in one run.

    python -m benchmarks.against OTHER --folder /data/scratch --size 17 --device cuda
    python -m benchmarks.against OTHER --folder /data/scratch --size 2 --device cpu --methods nearest --repeats 1

The same model is quantized by the command line of both trees, in turns, with the input in the page cache. Printed are
medians of seconds and peak memory, their ratios, and whether the tensors' bytes are the same.
"""

import argparse
import hashlib
import statistics
from dataclasses import dataclass
from pathlib import Path

from .common import BLOCK, ROOT, Run, environment, markdown_table, measured, times, tpec_command
from .end_to_end import ready
from .memory import model_file

HEADER = ("method", "tree", "seconds", "x", "peak GB", "x", "digest of the tensors")


@dataclass(frozen=True)
class Result:
    """The runs of one tree with one method, and a digest of what it wrote."""

    runs: tuple[Run, ...]
    digest: str

    @property
    def seconds(self) -> float:
        return statistics.median(run.seconds for run in self.runs)

    @property
    def peak_bytes(self) -> float:
        return statistics.median(run.peak_bytes for run in self.runs)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other tree's root")
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder with room for two models")
    parser.add_argument("--size", type=float, default=2, help="model size, GB (default 2)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", nargs="+", default=["nearest", "tpec"])
    parser.add_argument("--calibration", type=Path, help="calibrate the tpec method with this file")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def tensor_digest(path: Path) -> str:
    """SHA-256 of everything behind the header, whose metadata name the version; 16 digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()[:16]


def run_tree(root: Path, source: Path, output: Path, method: str, args: argparse.Namespace) -> Run:
    ready(source, True)
    more = ["--calibration", args.calibration] if args.calibration and method == "tpec" else []
    command = tpec_command("quantize", source, "-o", output, "--method", method, "--device", args.device, "--quiet",
                           "--overwrite", *more)
    return measured(command, env={"PYTHONPATH": str(root)}).checked()


def compare(method: str, source: Path, args: argparse.Namespace) -> list[tuple[str, ...]]:
    """Rows of the table: the other tree, then this one."""
    trees = {"other": args.other.resolve(), "this": ROOT}
    output = source.with_suffix(".out.safetensors")
    runs: dict[str, list[Run]] = {name: [] for name in trees}
    digests: dict[str, str] = {}
    for _ in range(args.repeats):
        for name, root in trees.items():
            runs[name].append(run_tree(root, source, output, method, args))
            digests.setdefault(name, tensor_digest(output))
            output.unlink()
    results = {name: Result(tuple(runs[name]), digests[name]) for name in trees}
    base = results["other"]
    return [(method, name, f"{one.seconds:.2f}", times(one.seconds, base.seconds, 3), f"{one.peak_bytes / 1e9:.3f}",
             times(one.peak_bytes, base.peak_bytes, 3), one.digest) for name, one in results.items()]


def main() -> None:
    args = arguments()
    print(environment(), flush=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    source = model_file(args.folder, args.size, "chroma", 3072)
    print(f"{source.name}: {source.stat().st_size / 1e9:.2f} GB, input in the page cache, medians of {args.repeats}")
    rows = [row for method in args.methods for row in compare(method, source, args)]
    print(markdown_table(HEADER, rows))


if __name__ == "__main__":
    main()
