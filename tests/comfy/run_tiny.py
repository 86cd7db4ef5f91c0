"""Quantizes small models and runs them in ComfyUI, with its Python: run_tiny.py COMFYUI_FOLDER FOLDER CLASS ...

The same noise and text go through the file that was quantized, loaded by ComfyUI's own loader, and through a float32
file of exactly what it means. Prints a line of JSON per class: for both forms the relative difference of the two
predictions, and that of the second from the original's.
"""

import json
import logging
import sys
from pathlib import Path

from without_server import start

ARGUMENTS = start()

import comfy.nested_tensor  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from meaning import Tensors, copy_weights, dequantized, relative  # noqa: E402
from meta_models import fake  # noqa: E402
from pack_names import Settings, make_plan, open_checkpoint, quantize, structure_of  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny_models import LARGE, TINY, Tiny  # noqa: E402


def weights(tiny: Tiny) -> Tensors:
    """Random float32 weights under the names of the published file."""
    variant = tiny.variant
    config = getattr(comfy.supported_models, variant.model_class)(variant.config)
    config.custom_operations = comfy.ops.manual_cast
    model = config.get_model(fake(variant.beside), "", device=torch.device("cpu")).diffusion_model
    make = torch.Generator().manual_seed(1)
    out = {}
    for name, tensor in model.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=make)
        if tensor.ndim > 1:
            drawn /= tensor[0].numel() ** 0.5
        elif "norm" in name and name.endswith("weight"):
            drawn = 1 + 0.1 * drawn
        else:
            drawn *= 0.1
        out[variant.rename(name) if variant.rename else name] = drawn
    return out


def predicted(path: Path, tiny: Tiny) -> torch.Tensor:
    """What the diffusion model itself gives out in a step of the stock sampler, loaded by ComfyUI's stock loader."""
    if tiny.variant.beside:  # ComfyUI finds such tensors in full checkpoints only
        model = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0]
    else:
        model = comfy.sd.load_diffusion_model(str(path))
    copy_weights(model.model.diffusion_model)
    out: list[torch.Tensor] = []

    def note(_: torch.nn.Module, __: object, given: object) -> None:
        out.extend(part.float().flatten() for part in (given if isinstance(given, (list, tuple)) else [given]))

    model.model.diffusion_model.register_forward_hook(note)
    make = torch.Generator().manual_seed(2)
    space = model.model.latent_format
    behind = tiny.latent or {1: (16,), 2: (16, 16), 3: (2, 16, 16)}[space.latent_dimensions]
    text = torch.randn(1, tiny.tokens, tiny.context, generator=make)
    extra = {name: torch.randn(shape, generator=make) if shape else 2 for name, shape in tiny.extra.items()}
    told = [[text, extra]]
    empty = torch.zeros(1, space.latent_channels, *behind)
    if tiny.sound:
        empty = comfy.nested_tensor.NestedTensor([empty, torch.zeros(tiny.sound)])
    empty = comfy.sample.fix_empty_latent_channels(model, empty)
    noise = comfy.sample.prepare_noise(empty, 3)
    comfy.sample.sample(model, noise, 1, 1.0, "euler", "simple", told, told, empty, seed=3)
    return torch.cat(out)


def run(tiny: Tiny, folder: Path) -> dict[str, object]:
    original, quantized, exact = (folder / f"{name}.safetensors" for name in ("original", "fp8", "exact"))
    beside = {name: torch.zeros(shape) for name, shape in tiny.variant.beside.items()}
    inner = "model.diffusion_model." if beside else ""
    save_file({inner + name: tensor for name, tensor in weights(tiny).items()} | beside, original,
              tiny.variant.metadata)
    checkpoint = open_checkpoint(original)
    structure = structure_of(checkpoint.tensors, checkpoint.metadata)
    before = predicted(original, tiny)
    facts = {"class": tiny.variant.model_class, "name": structure and structure.name,
             "finite": bool(before.isfinite().all()), "spread": before.std().item()}
    for form in ("comfy_quant", "scaled_fp8"):
        plan = make_plan(checkpoint, Settings(method="nearest", format=form), structure)
        quantize(plan, quantized, overwrite=True)
        save_file(dequantized(quantized), exact, tiny.variant.metadata)
        wanted = predicted(exact, tiny)
        facts[form] = {"layers": len(plan.of("quantize")), "rounding": relative(wanted, before),
                       "difference": relative(predicted(quantized, tiny), wanted)}
    return facts


def main() -> None:
    folder, *classes = ARGUMENTS
    logging.disable(logging.WARNING)
    for tiny in [*TINY, *LARGE]:
        if tiny.variant.model_class in classes:
            sys.stdout.write(json.dumps(run(tiny, Path(folder))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
