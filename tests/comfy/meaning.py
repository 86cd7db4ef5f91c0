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


def relative(value: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference by that of `wanted`."""
    return ((value - wanted).norm() / wanted.norm()).item()
