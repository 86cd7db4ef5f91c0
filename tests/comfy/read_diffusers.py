"""Holds the engine's reading of diffusers layouts to ComfyUI's, with its Python: read_diffusers.py COMFYUI FOLDER

Every model is built by ComfyUI on the meta device, its tensors are taken back to diffusers by ComfyUI's own maps, and
both read that: ComfyUI converts a file's tensors, the engine looks at the file through its view. Prints a line of JSON
per model.
"""

import importlib
import json
import logging
import sys
from pathlib import Path

from without_server import start

ARGUMENTS = start()

import comfy.model_detection as detection  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils as maps  # noqa: E402
import torch  # noqa: E402
from meta_models import fake  # noqa: E402
from pack_names import Settings, make_plan, structure_of  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny_models import LARGE, TINY  # noqa: E402
from variants import UNETS, Variant  # noqa: E402

files = importlib.import_module("pack.tpec.files.checkpoint")
header = importlib.import_module("pack.tpec.files.header")
in_comfyui_layout = importlib.import_module("pack.tpec.model.diffusers").in_comfyui_layout

Tensors = dict[str, torch.Tensor]
#: Classes with a map, and by how much a model of fixed width shrinks for the comparison of values.
TRANSFORMERS = {"Flux": 1, "FluxSchnell": 1, "SD3": 1, "PixArtAlpha": 1, "PixArtSigma": 1, "AuraFlow": 64, "ZImage": 30}
#: What the map of Flux holds for other programs' LoRAs and for Flux 2.
OF_OTHERS = (".linear_in.", ".linear_out.", ".to_qkv_mlp_proj.", ".attn.to_out.weight")
NO_UNETS = {"Stable_Zero123", "SD_X4Upscaler", "SVD_img2vid", "SV3D_u", "SV3D_p"}


def native(variant: Variant) -> Tensors:
    """The model's tensors on the meta device, under ComfyUI's own names."""
    config = getattr(comfy.supported_models, variant.model_class)(variant.config)
    config.custom_operations = comfy.ops.manual_cast
    return config.get_model(fake(variant.beside), "", device=torch.device("meta")).diffusion_model.state_dict()


def map_of(variant: Variant, state: Tensors) -> dict[str, object]:
    """ComfyUI's map from diffusers to its own names, which it makes for LoRAs from a model's configuration."""
    config = dict(variant.config)
    if variant.model_class not in TRANSFORMERS:
        return maps.unet_to_diffusers(config)
    if "joint_blocks.0.x_block.attn.qkv.weight" in state:
        return maps.mmdit_to_diffusers(config)
    if variant.model_class == "AuraFlow":
        return maps.auraflow_to_diffusers(config)
    if "PixArt" in variant.model_class:
        return maps.pixart_to_diffusers(config)
    if variant.model_class == "ZImage":
        return maps.z_image_to_diffusers(config)
    return maps.flux_to_diffusers(config)


def to_diffusers(state: Tensors, names: dict[str, object], shrink: int) -> Tensors:
    """The tensors as diffusers has them: renamed, split, halves swapped."""
    out: Tensors = {}
    seen: set[str] = set()
    for theirs, place in sorted(names.items()):
        ours, rows, *change = (place, None) if isinstance(place, str) else place
        if ours not in state or any(word in theirs for word in OF_OTHERS) or rows is None and ours in seen:
            continue
        seen.add(ours)
        tensor = state[ours] if rows is None else state[ours].narrow(rows[0], rows[1] // shrink, rows[2] // shrink)
        out[theirs] = (change[0](tensor) if change else tensor).contiguous()
    assert seen == state.keys(), sorted(state.keys() - seen)[:5]
    return out


def infos(tensors: Tensors) -> dict[str, object]:
    return {name: header.TensorInfo(name, "BF16", tuple(tensor.shape), 0, 2 * tensor.numel())
            for name, tensor in tensors.items()}


def shrunk(state: Tensors, by: int, unet: bool) -> Tensors:
    make = torch.Generator().manual_seed(1)
    return {name: torch.randn([min(size, 2) if unet else max(1, size // by) for size in tensor.shape], generator=make)
            for name, tensor in state.items()}


def compare(variant: Variant, folder: Path) -> dict[str, object]:
    state, unet = native(variant), variant.model_class not in TRANSFORMERS
    names, by = map_of(variant, state), TRANSFORMERS.get(variant.model_class, 1)
    large = in_comfyui_layout(files.Checkpoint(folder, (), infos(to_diffusers(state, names, 1)), {}, ""))
    plan = make_plan(large, Settings(), structure_of(large.tensors, {}))
    small = to_diffusers(shrunk(state, by, unet), names, by)
    path = folder / "diffusers.safetensors"
    save_file(small, path)
    if unet:
        wanted = {names[name]: tensor for name, tensor in small.items()}
    else:
        wanted = detection.convert_diffusers_mmdit(dict(small), "")
    view = in_comfyui_layout(files.open_checkpoint(path))
    reader = view.reader()
    wrong = [name for name in wanted if name not in view.tensors or not torch.equal(reader.tensor(name), wanted[name])]
    reader.close()
    return {"name": variant.name, "class": variant.model_class, "family": plan.family.classes, "notes": plan.notes,
            "view": view.notes, "tensors": len(wanted), "wrong": wrong + sorted(view.tensors.keys() - wanted.keys()),
            "shapes": {n: i.shape for n, i in large.tensors.items()} == {n: tuple(t.shape) for n, t in state.items()},
            "layers": len(plan.of("quantize"))}


def main() -> None:
    logging.disable(logging.WARNING)
    tiny = [tiny.variant for tiny in (*TINY, *LARGE) if tiny.variant.model_class in TRANSFORMERS]
    for variant in (*tiny, *(unet for unet in UNETS if unet.model_class not in NO_UNETS)):
        sys.stdout.write(json.dumps(compare(variant, Path(ARGUMENTS[0]))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
