"""The commands and their options, as argparse holds them."""

import argparse
from pathlib import Path

from ..model.order import family_names
from ..settings import FORMATS, MATMULS, METHODS
from ..version import __version__
from .checks import inspect_file, verify_files
from .demo import make_demo
from .quantize import quantize_inputs

_EXAMPLES = """examples:
  tpec inspect model.safetensors                          what it is, what would become FP8, how large the result is
  tpec quantize model.safetensors -o model_fp8.safetensors
  tpec verify model.safetensors model_fp8.safetensors     read back, layer by layer
  tpec COMMAND --help                                     all options of a command
"""
_QUANTIZE_EXAMPLES = """examples:
  tpec quantize model.safetensors                         the result beside it, named as the published script does
  tpec quantize model.safetensors -o fp8/                 into a folder
  tpec quantize a.safetensors b.safetensors -o fp8/       one after the other; the next goes on when one fails
  tpec quantize model.safetensors --report report.html    what it did to each layer, as a page with charts
  tpec quantize model.safetensors --dry-run               what would become of every tensor, and nothing written
  tpec quantize model.safetensors --calibration statistics.safetensors --keep-quality 5
  tpec quantize checkpoint.safetensors --part t5xxl       a full checkpoint, its text encoder as well
  torchrun --nproc-per-node 2 -m tpec quantize model.safetensors
"""
_INSPECT_EXAMPLES = """examples:
  tpec inspect model.safetensors --all                    every tensor, with the reason for what would become of it
  tpec inspect model.safetensors --json > facts.json

The exit code is 1 if quantize would refuse the file; the reason is printed.
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; the parsed namespace's `run(namespace)` returns the exit code."""
    parser = argparse.ArgumentParser(prog="tpec", description="Quantize models to ComfyUI's native scaled FP8.",
                                     epilog=_EXAMPLES, formatter_class=_Formatter)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    quantize = commands.add_parser("quantize", help="write a scaled FP8 file", allow_abbrev=False,
                                   epilog=_QUANTIZE_EXAMPLES, formatter_class=_Formatter)
    _add_files(quantize)
    _add_result(quantize)
    _add_layers(quantize)
    _add_rounding(quantize)
    _add_run(quantize)
    quantize.set_defaults(run=quantize_inputs, wrong_usage=quantize.error)
    _add_inspect(commands.add_parser("inspect", help="say what a file is and what would become of it",
                                     epilog=_INSPECT_EXAMPLES, formatter_class=_Formatter))
    verify = commands.add_parser("verify", help="hold a quantized file against its original; exit 1 on any fault")
    verify.add_argument("original", type=Path)
    verify.add_argument("quantized", type=Path)
    verify.set_defaults(run=verify_files)
    demo = commands.add_parser("demo", help="make a small Flux-layout model, quantize and verify it")
    demo.add_argument("--folder", type=Path, default=Path("tpec_demo"), help="where to write it (default: tpec_demo)")
    demo.set_defaults(run=make_demo)
    return parser


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path)
    parser.add_argument("--all", action="store_true", help="list every tensor")
    parser.add_argument("--json", action="store_true", help="machine-readable, with every tensor")
    parser.set_defaults(run=inspect_file)


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is read and written").add_argument
    add("inputs", nargs="*", metavar="INPUT", help="safetensors files, shards, indexes of shards or their folders")
    add("--input", dest="input_option", help="the input, as the published TPEC script takes it")
    add("-o", "--output", help="output file; a folder when there are several inputs or the name ends in a slash")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--report", type=Path, metavar="FILE", help="write the full report: .html a page to look at, .json data")
    add("--quiet", action="store_true", help="print errors only")


def _add_result(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what the result is").add_argument
    add("--format", choices=FORMATS, default="universal", help="universal loads in every ComfyUI since 2024")
    add("--matmul", choices=MATMULS, default="full_precision", help="what the file asks ComfyUI to do")
    add("--part", action="append", default=[], metavar="NAME",
        help="quantize this text encoder of a full checkpoint (t5xxl, ...) as well; several, or repeated: a,b")
    add("--only-part", action="store_true", help="write the diffusion model (and what --part names) alone")
    add("--keep-nonfinite", action="store_true", help="copy parameters that hold NaN or infinite values as they are")


def _add_layers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("which layers become FP8").add_argument
    add("--family", choices=family_names(), default="auto", metavar="NAME",
        help="model layout (default: recognised from the keys; docs/families.md lists them)")
    add("--t5xxl", action="store_true", help="the input is a T5-XXL text encoder")
    add("--keep-distillation", "--keep_distillation", action="store_true", help="keep Chroma's distilled guidance")
    add("--include", default="", metavar="RE", help="quantize Linear weights whose name matches, too")
    add("--exclude", default="", metavar="RE", help="keep tensors whose name matches")
    add("--keep-quality", "--keep_quality", type=float, default=0.0, metavar="PERCENT",
        help="extra size, in percent, to spend on keeping the layers that matter most in high precision")
    add("--embeddings", action="store_true",
        help="make a text encoder's token embedding FP8 as well (needs --format comfy_quant)")
    add("--like", type=Path, metavar="FILE", help="quantize the layers that this quantized file has in FP8")
    add("--recipe", type=Path, metavar="FILE.json", help="what becomes of each layer, as --write-recipe wrote it")
    add("--write-recipe", type=Path, metavar="FILE.json", help="write what becomes of each layer and why")


def _add_rounding(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how they are rounded").add_argument
    add("--method", choices=METHODS, default="tpec")
    add("--calibration", type=Path, metavar="FILE", help="statistics written by the calibration nodes")
    add("--top-k", "--top_k", type=int, metavar="K", help="principal components corrected (default: width / 16)")
    add("--num-iter", "--num_iter", type=int, metavar="N", help="sweeps of coordinate descent after rounding")
    add("--calib-samples", "--calib_samples", type=int, metavar="N",
        help="accepted for the published script's sake; random inputs do not help and are not used")


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how it runs").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N, or several separated by commas")
    add("--resume", action="store_true", help="go on where a killed run stopped, and keep what an interrupt leaves")
    add("--dry-run", action="store_true", help="show what would happen and stop")
