"""The programs this one is measured against: the published TPEC scripts and convert-to-quant.

Neither is part of this repository. The scripts come from a folder with a checkout of Clybius/Learned-Rounding
(--published), convert-to-quant from an executable of its own environment (--convert-to-quant); what is not given is
skipped with a line that says so.
"""

import argparse
import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from .common import Run, measured

#: Script file and its default number of iterations, by variant.
SCRIPTS = {
    "svd": ("convert_fp8_scaled_learned_svd.py", 250),
    "svd_fast": ("convert_fp8_scaled_learned_svd_fast.py", 500),
}


def add_arguments(parser: argparse.ArgumentParser, convert_to_quant: bool = True) -> None:
    parser.add_argument("--published", type=Path, metavar="FOLDER",
                        help="folder with the published TPEC scripts (a checkout of Clybius/Learned-Rounding)")
    if convert_to_quant:
        parser.add_argument("--convert-to-quant", type=Path, metavar="EXECUTABLE",
                            help="the convert-to-quant command of an environment that has it installed")


@dataclass(frozen=True)
class FilePeer:
    """A program that turns one safetensors file into another: `command(source, target)` is its command line."""

    title: str
    command: Callable[[Path, Path], list[str]]

    def run(self, source: Path, target: Path, timeout: float = 0) -> Run:
        """Run it. The published scripts and convert-to-quant exit with 0 after most failures: look for the file."""
        target.unlink(missing_ok=True)
        return measured(self.command(source.resolve(), target.resolve()), timeout=timeout)


def published_script(folder: Path | None, variant: str, extra: tuple[str, ...] = ()) -> FilePeer | None:
    """A published script with its default settings, or None (and a line) where it is not there."""
    script = _script(folder, variant)
    if script is None:
        return None
    return FilePeer(f"published {variant}", lambda source, target: [
        sys.executable, str(script), "--input", str(source), "--output", str(target), *extra])


def convert_to_quant(executable: Path | None, iterations: int = 500) -> FilePeer | None:
    """convert-to-quant with its learned rounding, 'original' optimizer (its default takes hours on a CPU)."""
    if executable is None or not executable.is_file():
        print("skipped: convert-to-quant (give its executable with --convert-to-quant)", file=sys.stderr)
        return None
    return FilePeer("convert-to-quant learned", lambda source, target: [
        str(executable), "--input", str(source), "--output", str(target), "--comfy_quant", "--optimizer", "original",
        "--num_iter", str(iterations), "--manual_seed", "0"])


def _script(folder: Path | None, variant: str) -> Path | None:
    script = folder / SCRIPTS[variant][0] if folder else None
    if script is None or not script.is_file():
        print(f"skipped: published {variant} (give the folder of its script with --published)", file=sys.stderr)
        return None
    return script.resolve()


@dataclass(frozen=True)
class LayerPeer:
    """A published converter for one layer: bf16 CPU weight -> (FP8 CPU weight, scale), with its own copies inside."""

    title: str
    convert: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def published_layer(folder: Path | None, variant: str, device: str) -> LayerPeer | None:
    """The converter object of a published script with its default number of iterations, quiet, on `device`."""
    script = _script(folder, variant)
    if script is None:
        return None
    module = _import(script)
    with quiet():
        converter = module.LearnedRoundingConverter(num_iter=SCRIPTS[variant][1])
    converter.device = device
    unused = torch.zeros(1, 1)

    def convert(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with quiet():
            # The calibration samples only serve the bias correction outside of this call.
            values, scale, _ = converter.convert(weight, unused)
        return values, scale

    return LayerPeer(f"published {variant}", convert)


def _import(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"published_{script.stem}", script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what the scripts print, progress bars included."""
    with open(os.devnull, "w", encoding="utf-8") as sink, contextlib.redirect_stdout(sink), \
            contextlib.redirect_stderr(sink):
        yield
