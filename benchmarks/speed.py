"""Time and peak memory of one layer of each Flux shape: this project beside the published scripts, in one run.

    python -m benchmarks.speed --published ../Learned-Rounding --device cuda
    python -m benchmarks.speed --layer-set --device cuda
    python -m benchmarks.speed --published ../Learned-Rounding --device cpu --hidden 256

"Compute" starts with the bf16 weight and ends with the FP8 codes on the device. "With copies" adds plain unpinned
copies from and to host memory, as the published scripts make them (theirs are timed as they are, and the same copies
timed alone are taken off for "compute"). Every program is warmed up; medians of --repeats runs, one run for the
published scripts. --layer-set times the calibrated rounding of a whole model's layers, 38 of each shape, each with a
Gram matrix of its own unless --layers-per-input says that several read the same input. "Factors" are of the inputs;
what --gradients adds is part of "rounding".
"""

import argparse
import contextlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tpec.device import fast_products

from . import ours, peers, synthetic
from .common import FLUX_SHAPES, GIB, LAYERS_PER_SHAPE, environment, markdown_table, times

Shape = tuple[int, int]
WARM_UP_SHAPE = (256, 256)


@dataclass(frozen=True)
class Timing:
    """Seconds and device bytes of one layer; `compute` without host copies, `loss` against nearest's on the metric."""

    title: str
    compute: float
    with_copies: float
    peak_bytes: int
    loss: float = math.nan


class Clock:
    """Wall time of work on a device, and what it allocated there at most beyond what was there before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.peak_bytes = 0

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def time(self, work: Callable[[], object]) -> float:
        cuda = self._device.type == "cuda"
        self._synchronize()
        before = torch.cuda.memory_allocated(self._device) if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        begin = time.perf_counter()
        result = work()
        self._synchronize()
        seconds = time.perf_counter() - begin
        self.peak_bytes = torch.cuda.max_memory_allocated(self._device) - before if cuda else 0
        del result
        return seconds


def copy_seconds(shape: Shape, device: torch.device, float32_back: bool) -> float:
    """Unpinned copies of a bf16 weight to the device and of FP8 codes (and a float32 weight) back."""
    if device.type == "cpu":
        return 0.0
    weight = torch.ones(shape, dtype=torch.bfloat16)
    codes = torch.zeros(shape, dtype=torch.float8_e4m3fn, device=device)
    wide = torch.zeros(shape, device=device) if float32_back else None
    clock = Clock(device)
    there = min(clock.time(lambda: weight.to(device)) for _ in range(2))
    back = min(clock.time(lambda: codes.cpu()) for _ in range(2))
    return there + back + (min(clock.time(lambda: wide.cpu()) for _ in range(2)) if wide is not None else 0.0)


def products(device: torch.device, exact: bool) -> contextlib.AbstractContextManager[None]:
    """The engine's own setting of matrix products, or float32 ones; the published scripts keep PyTorch's default."""
    return contextlib.nullcontext() if exact else fast_products([device])


def our_timings(shape: Shape, device: torch.device, args: argparse.Namespace) -> list[Timing]:
    weight = synthetic.weight(shape, 1, device)
    gram = synthetic.gram(shape[1], 2, device)
    clock = Clock(device)
    copies = copy_seconds(shape, device, False)
    timings = []
    for title, work in (("tpec", lambda: ours.data_free(weight)),
                        ("tpec calibrated", lambda: ours.calibrated(weight, ours.factor(gram))),
                        ("nearest", lambda: ours.nearest(weight))):
        with products(device, args.exact):
            loss = ours.relative_loss(work())
            compute = statistics.median(clock.time(work) for _ in range(args.repeats))
        # The weight itself is on the device before the clock starts, but the layer needs it.
        timings.append(Timing(title, compute, compute + copies, clock.peak_bytes + weight.nbytes, loss))
    return timings


def peer_timing(peer: peers.LayerPeer, shape: Shape, device: torch.device) -> Timing:
    weight = synthetic.weight(shape, 1, device).cpu()
    clock = Clock(device)
    seconds = clock.time(lambda: peer.convert(weight))
    return Timing(peer.title, max(seconds - copy_seconds(shape, device, True), 0.0), seconds, clock.peak_bytes)


def compare(shapes: list[Shape], device: torch.device, args: argparse.Namespace) -> None:
    """One table for each figure, shapes down, programs across; then 38 layers of each shape."""
    programs = [peers.published_layer(args.published, variant, device.type) for variant in args.variants]
    present = [peer for peer in programs if peer]
    for peer in present:
        peer.convert(synthetic.weight(WARM_UP_SHAPE, 0))
    rows: dict[Shape, list[Timing]] = {}
    for shape in shapes:
        rows[shape] = our_timings(shape, device, args)
        rows[shape] += [peer_timing(peer, shape, device) for peer in present]
        print(f"measured {shape[0]}x{shape[1]}", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    _print_seconds("compute", rows, lambda timing: timing.compute)
    if device.type == "cuda":
        _print_seconds("with host copies", rows, lambda timing: timing.with_copies)
        _print_figure("peak device memory, GiB", rows, lambda timing: f"{timing.peak_bytes / GIB:.2f}")
    _print_figure("loss on the method's own metric, x nearest", rows,
                  lambda timing: "-" if math.isnan(timing.loss) else f"{timing.loss:.4f}")


def _print_figure(what: str, rows: dict[Shape, list[Timing]], figure: Callable[[Timing], str]) -> None:
    titles = [timing.title for timing in next(iter(rows.values()))]
    print(f"\n{what}\n")
    print(markdown_table(["layer", *titles], [[f"{s[0]}x{s[1]}", *map(figure, rows[s])] for s in rows]))


def _print_seconds(what: str, rows: dict[Shape, list[Timing]], figure: Callable[[Timing], float]) -> None:
    shapes = list(rows)
    titles = [timing.title for timing in rows[shapes[0]]]
    theirs = [i for i, title in enumerate(titles) if title.startswith("published")]
    header = ["layer", *titles, *(f"{titles[i]} / tpec" for i in theirs)]
    seconds = {f"{s[0]}x{s[1]}": [figure(timing) for timing in rows[s]] for s in shapes}
    total = [LAYERS_PER_SHAPE * sum(column) for column in zip(*seconds.values(), strict=True)]
    seconds[f"{LAYERS_PER_SHAPE} of each"] = total
    print(f"\nseconds, {what}\n")
    print(markdown_table(header, [[name, *(f"{value:.4f}" if value < 10 else f"{value:.1f}" for value in line),
                                   *(times(line[i], line[0], 1) for i in theirs)] for name, line in seconds.items()]))


def layer_set(shapes: list[Shape], device: torch.device, args: argparse.Namespace) -> None:
    """Calibrated rounding of every layer of a model: factors and rounding timed apart, inputs made untimed."""
    rows, peaks = [], []
    for shape in shapes:
        ours.calibrated(synthetic.weight(shape, 0, device), ours.factor(synthetic.gram(shape[1], 0, device)))
        factors, rounding, peak = 0.0, 0.0, 0
        for first in range(0, args.layers, args.layers_per_input):
            layers = range(first, min(first + args.layers_per_input, args.layers))
            with products(device, args.exact):
                seconds = _one_input(shape, layers, device, args.gradients)
            factors, rounding, peak = factors + seconds[0], rounding + seconds[1], max(peak, seconds[2])
        rows.append((f"{shape[0]}x{shape[1]}", factors, rounding))
        peaks.append(peak)
        print(f"done {rows[-1][0]}: {factors + rounding:.2f} s", flush=True)
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    print(f"\ncalibrated, {args.layers} layers of each shape, {args.layers_per_input} per input, seconds\n")
    print(markdown_table(("layers", "factors", "rounding", "together", "peak device GiB"),
                         [(name, f"{a:.2f}", f"{b:.2f}", f"{a + b:.2f}", f"{peak / GIB:.2f}" if peak else "-")
                          for (name, a, b), peak in zip(rows, [*peaks, max(peaks)], strict=True)]))


def _one_input(shape: Shape, layers: range, device: torch.device, gradients: bool) -> tuple[float, float, int]:
    """(seconds of the inputs' factor, seconds of the rest, peak device bytes) of layers that read the same input."""
    clock = Clock(device)
    gram = synthetic.gram(shape[1], layers[0], device)
    weights = [synthetic.weight(shape, index, device) for index in layers]
    made: list[ours.Inputs] = []
    factors = clock.time(lambda: made.append(ours.factor(gram)))
    peak = clock.peak_bytes + gram.nbytes + weights[0].nbytes
    inputs = made.pop()
    held = peak if device.type == "cpu" else torch.cuda.memory_allocated(device) - sum(w.nbytes for w in weights[1:])
    rounding = 0.0
    for index, weight in zip(layers, weights, strict=True):
        outputs = synthetic.outputs(shape[0], index, device) if gradients else None
        rounding += clock.time(lambda weight=weight, outputs=outputs: ours.calibrated(weight, inputs, outputs))
        peak = max(peak, clock.peak_bytes + held)
    return factors, rounding, peak if device.type == "cuda" else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_arguments(parser, convert_to_quant=False)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of this project's methods (default 3)")
    parser.add_argument("--variants", nargs="+", default=list(peers.SCRIPTS), choices=tuple(peers.SCRIPTS),
                        help="published scripts to run (default both)")
    parser.add_argument("--hidden", type=int, default=3072, help="model width the shapes are scaled to (default 3072)")
    parser.add_argument("--exact", action="store_true", help="float32 matrix products instead of the engine's setting")
    parser.add_argument("--layer-set", action="store_true", help="time a whole model's calibrated layers instead")
    parser.add_argument("--gradients", action="store_true", help="--layer-set with output gradients of every layer")
    parser.add_argument("--layers", type=int, default=LAYERS_PER_SHAPE, help="layers of each shape for --layer-set")
    parser.add_argument("--layers-per-input", type=int, default=1, help="layers that share an input for --layer-set")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    shapes = [(rows * args.hidden // 3072, columns * args.hidden // 3072) for rows, columns in FLUX_SHAPES]
    print(environment(), flush=True)
    device = torch.device(args.device)
    (layer_set if args.layer_set else compare)(shapes, device, args)


if __name__ == "__main__":
    main()
