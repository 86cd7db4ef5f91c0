"""File to file on a GPU machine: this project against the disk itself, and against the published scripts, in one run.

    python -m benchmarks.end_to_end --folder /data/scratch --size 17 --published ../Learned-Rounding
    python -m benchmarks.end_to_end --folder /data/scratch --size 17 --only-scaling --gpus 1 2 \\
        --scaling="--calibration /data/scratch/calibration.safetensors"

The floor is a plain program that reads the input and writes as many bytes as the output has, block by block, and
synchronises them to disk once. Every reader finds the input cold (or warm in the page cache with --warm). The published
scripts are run whole on models of one and of three units (a unit: one double and two single blocks), whose difference
is the price of two units in loading, converting and saving; the model's own size gives the extrapolation.
With --gpus, the same job over several GPUs, and whether the bytes stay the same; a calibrated job, which takes the GPU
longer than the disk, needs benchmarks.make_calibration first.
"""

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.settings import Settings

from . import make_model, peers
from .common import BLOCK, Run, drop_cache, environment, markdown_table, measured, sha256, times, tpec_command
from .memory import model_file

Seconds = float

#: Units in the two models that the published scripts are run on.
PROBE_UNITS = (1, 3)


def ready(source: Path, warm: bool) -> None:
    """Put the input into the page cache, or out of it."""
    if not warm:
        drop_cache(source)
        return
    with open(source, "rb", buffering=0) as file:
        while file.read(BLOCK):
            pass


def plain_copy(source: Path, target: Path, nbytes: int) -> Seconds:
    """Read all of `source` and write `nbytes` of it to `target`, evenly interleaved, then fsync."""
    buffer = memoryview(bytearray(BLOCK))
    size = source.stat().st_size
    read = written = 0
    begin = time.perf_counter()
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            read += count
            due = min(count, nbytes * read // size - written)
            written += writer.write(buffer[:due]) if due else 0
        os.fsync(writer.fileno())
    seconds = time.perf_counter() - begin
    target.unlink()
    return seconds


def output_bytes(source: Path) -> int:
    """Bytes of this project's output for the model, from its plan."""
    return make_plan(open_checkpoint(source), Settings()).output_nbytes


def empty_process() -> Seconds:
    """Starting Python with torch and its first allocation on the device: part of every other whole command's time."""
    device = "'cuda' if torch.cuda.is_available() else 'cpu'"
    return measured([sys.executable, "-c", f"import torch; torch.zeros(1, device={device})"]).checked().seconds


def our_run(source: Path, target: Path, method: str, extra: list[str], processes: int = 1) -> Run:
    """The whole command, under torchrun where there are several processes."""
    command = tpec_command("quantize", source, "-o", target, "--method", method, "--quiet", "--overwrite", *extra)
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
                   *command[1:]]
    return measured(command).checked()


def repeated(args: argparse.Namespace, source: Path, once: Callable[[], Seconds]) -> Seconds:
    """Median of --repeats runs, each with the input in the same state."""
    seconds = []
    for _ in range(args.repeats):
        ready(source, args.warm)
        seconds.append(once())
    return statistics.median(seconds)


def probe_models(args: argparse.Namespace) -> list[Path]:
    """The small models that the published scripts are run on, written once for all of them."""
    paths = []
    for units in PROBE_UNITS:
        paths.append(args.folder / f"units{units}.safetensors")
        make_model.write_model(paths[-1], make_model.model_shapes(args.layout, args.hidden, units, 2 * units))
    return paths


def compile_kernels(args: argparse.Namespace) -> None:
    """Let Triton compile, at the first use on a machine, before any clock starts; a tiny model is enough for that."""
    tiny, target = args.folder / "tiny.safetensors", args.folder / "tiny.out.safetensors"
    make_model.write_model(tiny, make_model.model_shapes(args.layout, 512, 1, 2))
    seconds = our_run(tiny, target, "tpec", []).seconds
    print(f"tpec on {tiny.stat().st_size / 1e6:.0f} MB, kernels compiled: {seconds:.1f} s", flush=True)
    tiny.unlink()
    target.unlink()


def published_seconds(peer: peers.FilePeer, probes: list[Path], source: Path, warm: bool) -> Seconds:
    """Extrapolated wall time of a published script on `source`, from whole runs on two smaller models."""
    sizes, seconds = [], []
    for path in probes:
        output = path.with_suffix(".published.safetensors")
        ready(path, warm)
        run = peer.run(path, output)
        if not output.is_file():
            raise SystemExit(f"{peer.title} wrote no file:\n{run.output[-1000:]}")
        output.unlink()
        sizes.append(path.stat().st_size)
        seconds.append(run.seconds)
    more = (source.stat().st_size - sizes[0]) / (sizes[1] - sizes[0])
    measured_here = (f"{second:.1f} s for {size / 1e9:.2f} GB" for second, size in zip(seconds, sizes, strict=True))
    print(f"{peer.title}: {', '.join(measured_here)}", flush=True)
    return seconds[0] + more * (seconds[1] - seconds[0])


def compare(args: argparse.Namespace, source: Path) -> None:
    """Parts (a) to (d): floor, this project, published scripts."""
    wanted = output_bytes(source)
    floor = repeated(args, source, lambda: plain_copy(source, args.folder / "floor.bin", wanted))
    rows = [("plain read and write", floor), ("empty torch process", empty_process())]
    target = args.folder / "out.safetensors"
    for method in args.methods:
        seconds = repeated(args, source, lambda method=method: our_run(source, target, method, args.extra).seconds)
        rows.append((f"tpec --method {method}", seconds))
        target.unlink()
    ours = rows[-1]
    theirs = [peer for variant in args.variants if (peer := peers.published_script(args.published, variant))]
    probes = probe_models(args) if theirs else []
    for peer in theirs:
        rows.append((f"{peer.title} (extrapolated)", published_seconds(peer, probes, source, args.warm)))
    for path in probes:
        path.unlink()
    size = source.stat().st_size
    print(f"\n{size / 1e9:.2f} GB in, {wanted / 1e9:.2f} GB out, input {'warm' if args.warm else 'cold'}\n")
    print(markdown_table(("run", "seconds", "model GB/s", "x plain read and write", f"x {ours[0]}"),
                         [(title, f"{seconds:.1f}", f"{size / seconds / 1e9:.2f}", times(seconds, floor),
                           times(seconds, ours[1])) for title, seconds in rows]), flush=True)


def scale(args: argparse.Namespace, source: Path) -> None:
    """Part (e): the same job on 1, 2, ... GPUs, by torchrun and within one process."""
    options, target = shlex.split(args.scaling), args.folder / "out.safetensors"
    rows: list[tuple[str, Run, str]] = []
    for gpus in args.gpus:
        lanes = ",".join(f"cuda:{index}" for index in range(gpus))
        ways = {f"{gpus} GPU{'s' if gpus > 1 else ''}, one process": (["--device", lanes, *options], 1)}
        if gpus > 1:
            ways[f"{gpus} GPUs, torchrun"] = (options, gpus)
        for title, (extra, processes) in ways.items():
            ready(source, args.warm)
            run = our_run(source, target, "tpec", extra, processes)
            rows.append((title, run, sha256(target)))
            target.unlink()
            print(f"{title}: {run.seconds:.1f} s, sha256 {rows[-1][2][:16]}", flush=True)
    base = rows[0][1].seconds
    print(f"\nscaling with {args.scaling or 'default settings'}\n")
    print(markdown_table(("run", "seconds", "speed-up", "peak memory of a process, GB", "sha256"),
                         [(title, f"{run.seconds:.1f}", times(base, run.seconds), f"{run.peak_bytes / 1e9:.2f}",
                           digest[:16]) for title, run, digest in rows]))
    print("all outputs identical" if len({digest for _, _, digest in rows}) == 1 else "OUTPUTS DIFFER", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_arguments(parser, convert_to_quant=False)
    parser.add_argument("--folder", type=Path, required=True, help="where models and outputs go; needs 2.1 x the size")
    parser.add_argument("--size", type=float, default=17, help="model size, GB (default 17)")
    parser.add_argument("--layout", choices=make_model.LAYOUTS, default="chroma", help="model layout (default chroma)")
    parser.add_argument("--hidden", type=int, default=3072, help="model width (default 3072)")
    parser.add_argument("--methods", nargs="+", default=["nearest", "tpec"], help="methods to run (default both)")
    parser.add_argument("--variants", nargs="+", default=["svd_fast", "svd"], choices=tuple(peers.SCRIPTS),
                        help="published scripts to extrapolate (default both)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of the floor and of each method (default 1)")
    parser.add_argument("--warm", action="store_true", help="input in the page cache, as after a download")
    parser.add_argument("--gpus", type=int, nargs="*", default=[], help="also scale over these numbers of GPUs")
    parser.add_argument("--only-scaling", action="store_true", help="leave the comparison out")
    parser.add_argument("--scaling", default="", help="options of `tpec quantize` for the scaling runs, as one string")
    parser.add_argument("extra", nargs="*", help="further options of `tpec quantize` for the comparison, after --")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    print(environment(), flush=True)
    source = model_file(args.folder, args.size, args.layout, args.hidden)
    compile_kernels(args)
    if not args.only_scaling:
        compare(args, source)
    if args.gpus:
        scale(args, source)


if __name__ == "__main__":
    main()
