"""How close quantized models stay to their originals: this project, its peers, and plain rounding, in one run.

    python -m benchmarks.fidelity --published ../Learned-Rounding --convert-to-quant ~/ctq/bin/convert-to-quant \\
        --tinyflux tinyflux_shapes_bf16.safetensors --velocity-script velocity_error.py \\
        --conditioning conditioning.safetensors

MiniLM (a real trained text encoder, every encoder Linear): weight error, layer output error on held-out text, and the
published objective |u1^T (Q - W) v1| / sigma1, as geometric means over layers. tinyflux, when given: weight error,
objective, and the error of the predicted velocities. Every figure is read back from the file that a program wrote.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import ours, peers, tinyflux
from .common import environment, markdown_table, measured, times, tpec_command
from .errors import Errors, Reference, file_errors, reference_errors
from .minilm import MiniLM

METHODS = ("nearest", "tpec", "calibrated", "svd", "svd_fast", "convert-to-quant")
#: What MiniLM's file of Linears is quantized with: its layout is not a known one.
EVERY_WEIGHT = r"\.weight$"
HEADER = ("method", "weight error", "x", "layer output error", "x", "with bias", "x", "objective", "velocity error",
          "x", "seconds")


@dataclass(frozen=True)
class Row:
    """One method on one model; velocity is NaN where it does not apply."""

    title: str
    errors: Errors
    velocity: float = math.nan
    seconds: float = math.nan

    def cells(self, base: "Row") -> list[str]:
        mine, other = self.errors, base.errors
        return [self.title, _number(mine.weight), times(mine.weight, other.weight, 3),
                _number(mine.output), times(mine.output, other.output, 3),
                _number(mine.output_with_bias), times(mine.output_with_bias, other.output_with_bias, 3),
                _number(mine.principal, "{:.2e}"), _number(self.velocity), times(self.velocity, base.velocity, 3),
                _number(self.seconds, "{:.1f}")]


def _number(value: float, form: str = "{:.5f}") -> str:
    return "-" if math.isnan(value) else form.format(value)


def table(rows: list[Row]) -> str:
    return markdown_table(HEADER, [row.cells(rows[0]) for row in rows])


def our_file(source: Path, target: Path, method: str, include: str, calibration: Path | None = None) -> float:
    """Quantize by this project's CLI with its defaults; seconds."""
    options: list[object] = ["--method", method, "--device", "cpu", "--quiet", "--overwrite"]
    options += ["--include", include] if include else []
    options += ["--calibration", calibration] if calibration else []
    return measured(tpec_command("quantize", source, "-o", target, *options)).checked().seconds


def our_files(source: Path, folder: Path, args: argparse.Namespace, include: str,
              calibration: Callable[[], Path | None]) -> list[tuple[str, Path, float]]:
    """(title, file, seconds) of this project's methods among those asked for."""
    files = []
    for method in ("nearest", "tpec"):
        if method in args.methods:
            target = folder / f"{method}.safetensors"
            files.append((f"tpec --method {method}", target, our_file(source, target, method, include)))
    measured_file = calibration() if "calibrated" in args.methods else None
    if measured_file:
        target = folder / "calibrated.safetensors"
        files.append(("tpec calibrated", target, our_file(source, target, "tpec", include, measured_file)))
    return files


def peer_files(source: Path, folder: Path, args: argparse.Namespace) -> list[tuple[str, Path, float]]:
    """(title, file, seconds) of the peers that are there; a peer that wrote no file is named and left out."""
    programs = [peers.published_script(args.published, variant) for variant in peers.SCRIPTS if variant in args.methods]
    if "convert-to-quant" in args.methods:
        programs.append(peers.convert_to_quant(args.convert_to_quant, args.convert_iterations))
    files = []
    for number, program in enumerate(programs):
        if program is None:
            continue
        target = folder / f"peer{number}.safetensors"
        run = program.run(source, target, args.timeout)
        if target.is_file():
            files.append((program.title, target, run.seconds))
        else:
            print(f"skipped: {program.title} wrote no file (code {run.code}, {run.seconds:.0f} s): {run.output[-300:]}",
                  file=sys.stderr)
    return files


def minilm_rows(folder: Path, args: argparse.Namespace) -> list[Row]:
    model = MiniLM(args.calibration_tokens, args.held_out_tokens)
    statistics = model.statistics(model.held_out)
    references = {name: Reference(module.weight.detach(), module.bias.detach(), statistics[name].gram,
                                  statistics[name].mean) for name, module in model.linears().items()}
    source = folder / "minilm.safetensors"
    model.write_linears(source)
    files = our_files(source, folder, args, EVERY_WEIGHT, lambda: ours.collect(
        model.model, model.run(model.calibration), source, EVERY_WEIGHT, folder / "calibration.safetensors"))
    files += peer_files(source, folder, args)
    rows = [Row("round to nearest (reference)", reference_errors(references))]
    return rows + [Row(title, file_errors(path, references), seconds=seconds) for title, path, seconds in files]


def tinyflux_rows(folder: Path, args: argparse.Namespace) -> list[Row]:
    references = tinyflux.references(args.tinyflux)

    def calibration() -> Path | None:
        if args.tinyflux_calibration or not args.conditioning:
            return args.tinyflux_calibration
        sampler = tinyflux.Sampler(args.velocity_script, args.tinyflux, args.conditioning)
        return ours.collect(sampler.model, sampler.run(args.first_prompt, args.prompts), args.tinyflux, "",
                            folder / "calibration.safetensors")

    files = our_files(args.tinyflux, folder, args, "", calibration)
    linears = folder / "linears.safetensors"
    tinyflux.write_linears(args.tinyflux, linears)
    for title, path, seconds in peer_files(linears, folder, args):
        whole = path.with_name("whole_" + path.name)
        tinyflux.complete(args.tinyflux, path, whole)
        files.append((title, whole, seconds))
    _, nearest = tinyflux.velocity_error(args.velocity_script, args.tinyflux)
    rows = [Row("round to nearest (reference)", reference_errors(references), nearest)]
    for title, path, seconds in files:
        velocity, _ = tinyflux.velocity_error(args.velocity_script, path)
        rows.append(Row(title, file_errors(path, references), velocity, seconds))
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_arguments(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="methods to run (default all)")
    parser.add_argument("--models", nargs="+", choices=("minilm", "tinyflux"), default=("minilm", "tinyflux"),
                        help="test beds to run (default all that are there)")
    parser.add_argument("--tinyflux", type=Path, help="the bf16 tinyflux-shapes checkpoint")
    parser.add_argument("--velocity-script", type=Path, help="velocity_error.py, with flux_layout.py beside it")
    parser.add_argument("--conditioning", type=Path, help="stored prompts, to calibrate tinyflux by sampling")
    parser.add_argument("--tinyflux-calibration", type=Path, help="a calibration file, instead of sampling here")
    parser.add_argument("--first-prompt", type=int, default=32, help="first stored prompt to sample (default 32)")
    parser.add_argument("--prompts", type=int, default=8, help="number of prompts to sample, 20 steps each (default 8)")
    parser.add_argument("--calibration-tokens", type=int, default=65536, help="MiniLM calibration text (default 65536)")
    parser.add_argument("--held-out-tokens", type=int, default=32768, help="MiniLM test text (default 32768)")
    parser.add_argument("--convert-iterations", type=int, default=500, help="convert-to-quant --num_iter (default 500)")
    parser.add_argument("--timeout", type=float, default=0, help="stop a peer after so many seconds")
    args = parser.parse_args()
    if bool(args.tinyflux) != bool(args.velocity_script):
        parser.error("--tinyflux and --velocity-script belong together")
    return args


def main() -> None:
    args = arguments()
    print(environment())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "minilm" in args.models:
            print(f"\nMiniLM, held out {args.held_out_tokens} tokens\n")
            print(table(minilm_rows(folder, args)), flush=True)
        if "tinyflux" in args.models and args.tinyflux:
            print("\ntinyflux-shapes\n")
            print(table(tinyflux_rows(folder, args)), flush=True)


if __name__ == "__main__":
    main()
