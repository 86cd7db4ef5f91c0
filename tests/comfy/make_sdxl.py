"""Writes a full checkpoint in SDXL layout with random weights, with ComfyUI's Python: make_sdxl.py COMFYUI_FOLDER FILE

The UNet is Segmind Vega's with narrow levels; the text encoders and the VAE have their real sizes, as ComfyUI fixes
them.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
COMFYUI, FILE = sys.argv[1:]
sys.path[:0] = [COMFYUI, str(HERE.parent), str(HERE)]
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.ops  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny_models import TINY  # noqa: E402

VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
       "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
Tensors = dict[str, torch.Tensor]


def drawn(state: Tensors, make: torch.Generator) -> Tensors:
    """Random float16 weights of moderate size in place of `state`'s; whole numbers stay."""
    out = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            out[name] = tensor.clone()
        elif tensor.ndim > 1:
            out[name] = (torch.randn(tensor.shape, generator=make) / max(tensor[0].numel(), 1) ** 0.5).half()
        else:
            one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            out[name] = (one + 0.05 * torch.randn(tensor.shape, generator=make)).half()
    return out


def main() -> None:
    make = torch.Generator().manual_seed(5)
    tiny = next(tiny for tiny in TINY if tiny.variant.model_class == "Segmind_Vega")
    config = comfy.supported_models.Segmind_Vega(tiny.variant.config)
    config.custom_operations = comfy.ops.manual_cast
    unet = config.get_model({}, "", device=torch.device("cpu")).diffusion_model
    clip = comfy.sdxl_clip.SDXLClipModel(device="cpu", dtype=torch.float16)
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in drawn(unet.state_dict(), make).items()}
    encoders = config.process_clip_state_dict_for_saving(drawn(clip.state_dict(), make))
    tensors |= {name: tensor.contiguous() for name, tensor in encoders.items()}
    vae = AutoencoderKL(ddconfig=VAE, embed_dim=4)
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in drawn(vae.state_dict(), make).items()}
    save_file(tensors, FILE)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
