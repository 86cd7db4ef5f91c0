"""What other 8-bit forms of the same model would cost: its weights as they come out of them, measured by velocity.

    python -m benchmarks.alternatives ../shared/fidelity/velocity_error.py MODEL [OURS.safetensors ...]

"cast" is FP8 without any scale, as the first FP8 downloads have it. "scaled" has one scale per tensor and plain
rounding. "Q8_0" is the arithmetic of GGUF's form of that name: blocks of 32 weights, each with a float16 scale and
signed 8-bit integers, 8.5 bits a weight. Files of this project that are named are measured beside them. The same layers
are rounded in all: those that this project quantizes.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from tpec.files.checkpoint import open_checkpoint
from tpec.model.families import QUANTIZE
from tpec.model.plan import make_plan
from tpec.settings import Settings

from .common import environment, markdown_table, times
from .errors import read_tensors
from .tinyflux import velocity_error

E4M3_MAX = 448.0
BLOCK_OF_Q8_0 = 32


def cast(weight: torch.Tensor) -> torch.Tensor:
    """Float32 [rows, columns] after a cast to e4m3fn and back."""
    return weight.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()


def scaled(weight: torch.Tensor) -> torch.Tensor:
    """The same with one scale per tensor, absmax / 448."""
    scale = weight.abs().max() / E4M3_MAX
    return cast(weight / scale) * scale


def q8_0(weight: torch.Tensor) -> torch.Tensor:
    """The same through blocks of 32 in int8 with a float16 scale each; columns must be a multiple of 32."""
    blocks = weight.view(-1, BLOCK_OF_Q8_0)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    codes = (blocks / scale.where(scale > 0, 1)).round()
    return (codes * scale.half().float()).view_as(weight)


FORMS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float]] = {
    "FP8, cast without a scale": (cast, 8), "FP8, scaled, plain rounding": (scaled, 8), "Q8_0": (q8_0, 8.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, help="prints the velocity error of a file")
    parser.add_argument("model", type=Path)
    parser.add_argument("ours", type=Path, nargs="*", help="files of this project to measure beside them")
    args = parser.parse_args()
    print(environment(), flush=True)
    layers = {layer.name for layer in make_plan(open_checkpoint(args.model), Settings()).of(QUANTIZE)}
    original = read_tensors(args.model)
    errors: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "form.safetensors"
        for title, (form, bits) in FORMS.items():
            save_file({name: form(tensor.float()) if name in layers else tensor for name, tensor in original.items()},
                      target)
            errors[title] = velocity_error(args.script, target)[0], bits
    for path in args.ours:
        errors[path.stem] = velocity_error(args.script, path)[0], 8
    base = errors["FP8, scaled, plain rounding"][0]
    print(markdown_table(("form", "bits a weight", "velocity error", "x plain scaled FP8"),
                         [(title, f"{bits:g}", f"{error:.5f}", times(error, base, 3))
                          for title, (error, bits) in errors.items()]))


if __name__ == "__main__":
    main()
