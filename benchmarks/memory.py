"""Peak memory and time of whole runs from file to file, by model size.

    python -m benchmarks.memory --folder /data/scratch --sizes 1 2 4 8
    python -m benchmarks.memory --folder /data/scratch --sizes 2 --published ../Learned-Rounding

Synthetic models are written into the folder (and reused when they are there already). Peak memory is the largest
resident size of the command's process as the system counted it; next to it, what that is above a Python that has only
imported torch.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import make_model, peers
from .common import Run, drop_cache, environment, markdown_table, measured, times, tpec_command

HEADER = ("model GB", "program", "seconds", "s / GB", "peak GB", "above empty torch GB", "x model", "output x input")


def model_file(folder: Path, size: float, layout: str, hidden: int) -> Path:
    """The synthetic model of about `size` GB, written now unless it is there."""
    path = folder / f"{layout}-{hidden}-{size:g}.safetensors"
    if not path.is_file():
        doubles, singles = make_model.depth_for(size * 1e9, hidden, layout)
        make_model.write_model(path, make_model.model_shapes(layout, hidden, doubles, singles))
    return path


def empty_torch() -> Run:
    """A process that imports torch and ends: what every PyTorch program takes at least."""
    return measured([sys.executable, "-c", "import torch"]).checked()


def row(source: Path, title: str, run: Run, output: Path, base: Run) -> list[str]:
    size = source.stat().st_size
    wrote = f"{output.stat().st_size / size:.3f}" if output.is_file() else f"none, code {run.code}"
    return [f"{size / 1e9:.2f}", title, f"{run.seconds:.1f}", f"{run.seconds / size * 1e9:.1f}",
            f"{run.peak_bytes / 1e9:.2f}", f"{(run.peak_bytes - base.peak_bytes) / 1e9:.2f}",
            times(run.peak_bytes, size), wrote]


def our_rows(source: Path, args: argparse.Namespace, base: Run) -> Iterator[list[str]]:
    output = source.with_suffix(".out.safetensors")
    for method in args.methods:
        drop_cache(source)
        command = tpec_command("quantize", source, "-o", output, "--method", method, "--device", args.device, "--quiet",
                               "--overwrite", *args.extra)
        yield row(source, f"tpec --method {method}", measured(command).checked(), output, base)
        output.unlink()


def published_row(source: Path, args: argparse.Namespace, base: Run) -> list[str] | None:
    iterations = ("--num_iter", str(args.published_iterations)) if args.published_iterations else ()
    peer = peers.published_script(args.published, "svd_fast", iterations)
    if peer is None:
        return None
    output = source.with_suffix(".published.safetensors")
    drop_cache(source)
    run = peer.run(source, output, args.timeout)
    suffix = f", {args.published_iterations} iterations" if args.published_iterations else ""
    result = row(source, peer.title + suffix, run, output, base)
    output.unlink(missing_ok=True)
    return result


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_arguments(parser, convert_to_quant=False)
    parser.add_argument("--folder", type=Path, required=True, help="where models and outputs go; needs 1.6 x the size")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 2, 4, 8], help="model sizes, GB")
    parser.add_argument("--methods", nargs="+", default=["nearest", "tpec"], help="methods to run (default both)")
    parser.add_argument("--layout", choices=make_model.LAYOUTS, default="chroma", help="model layout (default chroma)")
    parser.add_argument("--hidden", type=int, default=3072, help="model width (default 3072)")
    parser.add_argument("--device", default="cpu", help="device of this project's runs (default cpu)")
    parser.add_argument("--published-size", type=float, default=2, help="the size the published fast script runs at")
    parser.add_argument("--published-iterations", type=int, default=0,
                        help="fewer iterations for the published script when only its memory is wanted")
    parser.add_argument("--timeout", type=float, default=0, help="seconds after which the published script is stopped")
    parser.add_argument("--discard", action="store_true", help="remove each model after its runs")
    parser.add_argument("extra", nargs="*", help="further options of `tpec quantize`, after --")
    return parser.parse_args(argv)


def main() -> None:
    args = arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    base = empty_torch()
    print(environment())
    print(f"empty torch process: {base.peak_bytes / 1e9:.2f} GB, {base.seconds:.1f} s\n")
    rows = []
    for size in args.sizes:
        source = model_file(args.folder, size, args.layout, args.hidden)
        rows += our_rows(source, args, base)
        if args.published and size == args.published_size:
            beside = published_row(source, args, base)
            rows += [beside] if beside else []
        if args.discard:
            source.unlink()
    print(markdown_table(HEADER, rows))


if __name__ == "__main__":
    main()
