"""What quantized files mean, for scripts in ComfyUI's Python that compare what models compute with it."""

from pathlib import Path

import torch
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]


def dequantized(path: Path) -> Tensors:
    """What a file means, in float32, without its quantization keys."""
    raw = load_file(path)
    out = {}
    for name, tensor in raw.items():
        if tensor.dtype == torch.float8_e4m3fn and name.endswith(".weight"):
            layer = name.removesuffix(".weight")
            scale = raw[f"{layer}.weight_scale"] if f"{layer}.weight_scale" in raw else raw[f"{layer}.scale_weight"]
            out[name] = tensor.float() * scale.float()
        elif not name.endswith(("scaled_fp8", ".weight_scale", ".scale_weight", ".comfy_quant", ".input_scale")):
            out[name] = tensor.float()
    return out


def copy_weights(model: torch.nn.Module) -> None:
    """Put the weights that are used as their file has them where PyTorch puts new ones.

    Within a file they begin anywhere, and some processors add such numbers in another order than those that FP8
    weights are unpacked to. Dozens of layers of random weights make a large difference of it.
    """
    for weight in model.parameters():
        if type(weight.data) is torch.Tensor:
            weight.data = weight.data.clone()


def relative(value: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference by that of `wanted`."""
    return ((value - wanted).norm() / wanted.norm()).item()
