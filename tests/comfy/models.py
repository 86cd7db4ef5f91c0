"""Small models with random weights in the layouts that ComfyUI recognises."""

import re
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


def flux(hidden: int = 256, double: int = 1, single: int = 1, seed: int = 0, context: int = 64) -> Tensors:
    """Flux schnell's names and proportions, bf16; heads are 128 wide."""
    make = torch.Generator().manual_seed(seed)

    def weight(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=make) / columns**0.5).bfloat16()

    shapes = {"img_in": (hidden, 64), "txt_in": (hidden, context), "time_in.in_layer": (hidden, 256),
              "time_in.out_layer": (hidden, hidden), "vector_in.in_layer": (hidden, context),
              "vector_in.out_layer": (hidden, hidden), "final_layer.linear": (64, hidden),
              "final_layer.adaLN_modulation.1": (2 * hidden, hidden)}
    tensors: Tensors = {}
    for index in range(double):
        for side in ("img", "txt"):
            at = f"double_blocks.{index}.{side}"
            shapes |= {f"{at}_attn.qkv": (3 * hidden, hidden), f"{at}_attn.proj": (hidden, hidden),
                       f"{at}_mod.lin": (6 * hidden, hidden), f"{at}_mlp.0": (4 * hidden, hidden),
                       f"{at}_mlp.2": (hidden, 4 * hidden)}
            tensors |= _norms(f"{at}_attn.norm")
    for index in range(single):
        at = f"single_blocks.{index}"
        shapes |= {f"{at}.linear1": (7 * hidden, hidden), f"{at}.linear2": (hidden, 5 * hidden),
                   f"{at}.modulation.lin": (3 * hidden, hidden)}
        tensors |= _norms(f"{at}.norm")
    for name, (rows, columns) in shapes.items():
        tensors[f"{name}.weight"] = weight(rows, columns)
        tensors[f"{name}.bias"] = torch.zeros(rows, dtype=torch.bfloat16)
    return tensors


def _norms(at: str) -> Tensors:
    return {f"{at}.{name}.scale": torch.ones(128, dtype=torch.bfloat16) for name in ("query_norm", "key_norm")}


#: ComfyUI takes these for T5-XXL's sizes when they are given as its `t5xxl_model_config`; d_ff is what it detects.
SMALL_T5 = {"d_model": 32, "d_kv": 32, "num_heads": 1, "d_ff": 10240, "num_layers": 24, "vocab_size": 32128}


def t5xxl(decoder: bool = False, seed: int = 0) -> Tensors:
    """T5-XXL's names, layer count and feed-forward width, bf16, but only 32 wide."""
    make = torch.Generator().manual_seed(seed)
    wide, inner = SMALL_T5["d_model"], SMALL_T5["d_ff"]

    def weight(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=make) / columns**0.5).bfloat16()

    tensors = {"shared.weight": weight(SMALL_T5["vocab_size"], wide),
               "encoder.final_layer_norm.weight": torch.ones(wide, dtype=torch.bfloat16)}
    for index in range(SMALL_T5["num_layers"]):
        at = f"encoder.block.{index}.layer"
        for name in "qkvo":
            tensors[f"{at}.0.SelfAttention.{name}.weight"] = weight(wide, wide)
        for name, shape in {"wi_0": (inner, wide), "wi_1": (inner, wide), "wo": (wide, inner)}.items():
            tensors[f"{at}.1.DenseReluDense.{name}.weight"] = weight(*shape)
        for part in "01":
            tensors[f"{at}.{part}.layer_norm.weight"] = torch.ones(wide, dtype=torch.bfloat16)
    tensors["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = weight(32, 1)
    if decoder:
        tensors["decoder.block.0.layer.0.SelfAttention.q.weight"] = weight(wide, wide)
        tensors["lm_head.weight"] = weight(64, wide)
    return tensors


#: CLIP-L's sizes, small, for ComfyUI's `clip_l_model_config`.
SMALL_CLIP_L = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}


def clip_l() -> Tensors:
    """CLIP-L's names, float16, small and only two layers."""
    make = torch.Generator().manual_seed(0)
    wide, inner = SMALL_CLIP_L["hidden_size"], SMALL_CLIP_L["intermediate_size"]
    shapes = {"embeddings.token_embedding.weight": (49408, wide), "embeddings.position_embedding.weight": (77, wide)}
    vectors = {"final_layer_norm": wide}
    for index in range(SMALL_CLIP_L["num_hidden_layers"]):
        at = f"encoder.layers.{index}"
        shapes |= {f"{at}.mlp.fc1.weight": (inner, wide), f"{at}.mlp.fc2.weight": (wide, inner)}
        shapes |= {f"{at}.self_attn.{name}.weight": (wide, wide) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        vectors |= {f"{at}.layer_norm{number}": wide for number in (1, 2)}
    tensors = {f"text_model.{name}": torch.randn(shape, generator=make).mul(0.1).half()
               for name, shape in shapes.items()}
    for name, width in vectors.items():
        tensors[f"text_model.{name}.weight"] = torch.ones(width, dtype=torch.float16)
        tensors[f"text_model.{name}.bias"] = torch.zeros(width, dtype=torch.float16)
    for name, (rows, _) in shapes.items():
        if ".layers." in name:
            tensors[f"text_model.{name.removesuffix('weight')}bias"] = torch.zeros(rows, dtype=torch.float16)
    return tensors


def lora(base: Tensors, rank: int = 8, size: float = 0.1, seed: int = 1, part: str = "attn|mlp|linear") -> Tensors:
    """A LoRA for the Linears of a Flux layout whose names hold `part`, in ComfyUI's generic form, float16.

    Each one's change has `size` of the weight's norm.
    """
    make = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, weight in base.items():
        if weight.ndim != 2 or not name.endswith(".weight") or not re.search(f"blocks.*({part})", name):
            continue
        layer = f"diffusion_model.{name.removesuffix('.weight')}"
        up, down = torch.randn(len(weight), rank, generator=make), torch.randn(rank, weight.shape[1], generator=make)
        down *= size * weight.float().norm() / (up @ down).norm()
        tensors |= {f"{layer}.lora_up.weight": up.half(), f"{layer}.lora_down.weight": down.half(),
                    f"{layer}.alpha": torch.tensor(float(rank))}
    return tensors


def unknown() -> Tensors:
    return {f"tower.{index}.mixer.weight": torch.ones(32, 32, dtype=torch.bfloat16) for index in range(3)}


def save(tensors: Tensors, path: Path) -> Path:
    save_file(tensors, path)
    return path


def truncate(path: Path, part: float = 0.6) -> Path:
    """Cut a file's end off, as an interrupted download does; the header stays whole."""
    data = path.read_bytes()
    header = struct.unpack("<Q", data[:8])[0] + 8
    path.write_bytes(data[: header + int((len(data) - header) * part)])
    return path
