"""What a published layout is, and how its names differ from those of ComfyUI's modules."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Variant:
    """One published layout: the class that ComfyUI must recognise, how to build it, how its file differs from the
    modules."""

    name: str
    model_class: str
    config: dict[str, Any]
    metadata: dict[str, str] | None = None
    markers: tuple[str, ...] = ()           # empty tensors that only say something: __x0__
    beside: Shapes = field(default_factory=dict)     # tensors outside the diffusion model that detection asks for
    rename: Callable[[str], str] | None = None       # module's name -> the published file's
    merge: tuple[str, tuple[str, ...],
                 str] | None = None   # regex of a merged tensor's parts, their order, the merged name
    device: str = "meta"                    # cpu where a constructor reads values; its weights are never touched
    note: str = ""


def scale_norms(name: str) -> str:
    """The original names of RMS norms in Flux and its kin."""
    return re.sub(r"((?:query|key)_norm|\.norms\.\d+|txt_norm|nerf_.*norm)\.weight$", r"\1.scale", name)


def tencent(name: str) -> str:
    """HunyuanVideo's names in Tencent's own files, the other way round than ComfyUI's renaming on load."""
    name = re.sub(r"^(double_blocks\.\d+\.(?:img|txt)_)mod\.lin\.", r"\1mod.linear.", name)
    name = re.sub(r"^(double_blocks\.\d+\.(?:img|txt))_attn\.(qkv|proj)\.", r"\1_attn_\2.", name)
    name = re.sub(r"^(double_blocks\.\d+\.(?:img|txt))_attn\.norm\.query_norm\.", r"\1_attn_q_norm.", name)
    name = re.sub(r"^(double_blocks\.\d+\.(?:img|txt))_attn\.norm\.key_norm\.", r"\1_attn_k_norm.", name)
    name = re.sub(r"^(double_blocks\.\d+\.(?:img|txt)_mlp)\.0\.", r"\1.fc1.", name)
    name = re.sub(r"^(double_blocks\.\d+\.(?:img|txt)_mlp)\.2\.", r"\1.fc2.", name)
    name = re.sub(r"^(single_blocks\.\d+)\.norm\.query_norm\.", r"\1.q_norm.", name)
    name = re.sub(r"^(single_blocks\.\d+)\.norm\.key_norm\.", r"\1.k_norm.", name)
    name = re.sub(r"^(single_blocks\.\d+)\.modulation\.lin\.", r"\1.modulation.linear.", name)
    name = re.sub(r"^(txt_in\.individual_token_refiner\.blocks\.\d+\.mlp)\.0\.", r"\1.fc1.", name)
    name = re.sub(r"^(txt_in\.individual_token_refiner\.blocks\.\d+\.mlp)\.2\.", r"\1.fc2.", name)
    name = name.replace("txt_in.t_embedder.in_layer.", "txt_in.t_embedder.mlp.0.")
    name = name.replace("txt_in.t_embedder.out_layer.", "txt_in.t_embedder.mlp.2.")
    name = name.replace("txt_in.c_embedder.in_layer.", "txt_in.c_embedder.linear_1.")
    name = name.replace("txt_in.c_embedder.out_layer.", "txt_in.c_embedder.linear_2.")
    name = re.sub(r"^(time_in|guidance_in|time_r_in)\.in_layer\.", r"\1.mlp.0.", name)
    return re.sub(r"^(time_in|guidance_in|time_r_in)\.out_layer\.", r"\1.mlp.2.", name)


def in_core(name: str) -> str:
    """PixelDiT's own files."""
    return name if name.startswith("lq_proj.") else f"core.{name}"
