"""A small really trained Flux-layout model as a test bed: how far its predicted velocities move.

The model file and the script that measures it are given; nothing of them is part of this repository.
"""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from .errors import Reference, read_tensors

#: The Linear layers that every method quantizes, so that all are compared on the same ones.
BLOCK_LINEAR = re.compile(r"(double|single)_blocks\..*\.(weight|bias)$")
STEPS, GUIDANCE, SIZE, CHANNELS = 20, 3.0, 32, 16


def velocity_error(script: Path, checkpoint: Path) -> tuple[float, float]:
    """(error, the script's own figure for round-to-nearest) of a quantized file."""
    done = subprocess.run([sys.executable, script, checkpoint], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The velocity script failed on {checkpoint.name}:\n{done.stderr[-1500:]}")
    result = json.loads(done.stdout)
    return result["velocity_error"], result["round_to_nearest"]


def references(model: Path) -> dict[str, Reference]:
    """The block Linears of the original, without activations."""
    tensors = read_tensors(model)
    layers = [name.removesuffix(".weight") for name, tensor in tensors.items()
              if BLOCK_LINEAR.match(name) and name.endswith(".weight") and tensor.ndim == 2]
    return {layer: Reference(tensors[f"{layer}.weight"], tensors.get(f"{layer}.bias")) for layer in layers}


def write_linears(model: Path, target: Path) -> None:
    """The block Linears alone, for programs that would quantize everything else as well."""
    tensors = read_tensors(model)
    save_file({name: tensor for name, tensor in tensors.items() if BLOCK_LINEAR.match(name)}, target)


def complete(model: Path, quantized: Path, target: Path) -> None:
    """Put a peer's quantized layers back beside the original's other tensors."""
    save_file(read_tensors(model) | read_tensors(quantized), target)


class Sampler:
    """The model in float32 and a plain Euler sampler with guidance; its inputs are what calibration sees."""

    def __init__(self, script: Path, model: Path, conditioning: Path) -> None:
        layout = script.resolve().with_name("flux_layout.py")
        spec = importlib.util.spec_from_file_location("flux_layout", layout)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.model = module.MiniFlux().eval()
        self.model.load_state_dict({name: tensor.float() for name, tensor in read_tensors(model).items()})
        self._prompts = read_tensors(conditioning)

    def run(self, first: int, count: int) -> Iterator[None]:
        """Sample `count` stored prompts from number `first` on, each from its own noise; yields after every step."""
        context = self._prompts["context"][first:first + count].float()
        pooled = self._prompts["pooled"][first:first + count].float()
        random = torch.Generator().manual_seed(first)
        x = torch.randn(count, CHANNELS, SIZE, SIZE, generator=random)
        both = (torch.cat([context, torch.zeros_like(context)]), torch.cat([pooled, torch.zeros_like(pooled)]))
        times = torch.linspace(1, 0, STEPS + 1)
        with torch.no_grad():
            for now, then in zip(times, times[1:], strict=False):
                positive, negative = self.model(torch.cat([x, x]), now.expand(2 * count), *both).chunk(2)
                x = x + (then - now) * (negative + GUIDANCE * (positive - negative))
                yield
