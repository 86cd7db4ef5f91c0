"""Text encoders small enough for a CPU: which sizes of ComfyUI's own configurations are made smaller for each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Sizes = Mapping[str, object]

WORDS = 512
_SMALL: Sizes = {"vocab_size": WORDS, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
                 "num_key_value_heads": 1}
_NARROW: Sizes = {**_SMALL, "hidden_size": 64}
_T5: Sizes = {"vocab_size": WORDS, "d_model": 32, "d_kv": 32, "num_heads": 1}
_QWEN35: Sizes = {
    **_SMALL, "num_hidden_layers": 4, "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32}
_EXPERTS: Sizes = {**_NARROW, "num_local_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class TinyEncoder:
    """An encoder of encoder_variants.py. `part` is what ComfyUI calls it in options ('' where it has no name there),
    `sizes` go into its configuration.

    Widths by which ComfyUI or the table of families tells encoders apart are the real ones, and so is the number of
    layers where what ComfyUI reads of it lies deep inside. `options` are further options of the loader.
    """

    name: str
    part: str
    sizes: Sizes = field(default_factory=lambda: _SMALL)
    options: Mapping[str, object] = field(default_factory=dict)


TINY_ENCODERS = [
    TinyEncoder("t5-xxl", "t5xxl", _T5),
    TinyEncoder("umt5-xxl", "umt5xxl", _T5),
    TinyEncoder("t5-1.0-xxl", "t5xxl", _T5),
    TinyEncoder("llama-3.1-8b", "llama"),
    TinyEncoder("mistral-3-24b", "mistral3_24b", {**_SMALL, "num_hidden_layers": 40, "num_attention_heads": 1}),
    TinyEncoder("mistral-3-24b-pruned", "mistral3_24b", {**_SMALL, "num_hidden_layers": 30, "num_attention_heads": 1}),
    TinyEncoder("ministral-3-3b", "ministral3_3b"),
    TinyEncoder("gpt-oss-20b", "gpt_oss", options={"gpt_oss_config": _EXPERTS, "selected_layers": (0, 2)}),
    TinyEncoder("qwen2.5-vl-3b", "qwen25_3b", {**_NARROW, "num_key_value_heads": 2}),
    TinyEncoder("qwen2.5-vl-7b", "qwen25_7b", {**_NARROW, "num_attention_heads": 4, "num_key_value_heads": 4}),
    TinyEncoder("qwen3-0.6b", "qwen3_06b"),
    TinyEncoder("qwen3-2b", "qwen3_2b"),
    TinyEncoder("qwen3-4b", "qwen3_4b"),
    TinyEncoder("qwen3-8b", "qwen3_8b", {**_SMALL, "num_hidden_layers": 28}),
    TinyEncoder("qwen3-vl-4b", "qwen3vl_4b"),
    TinyEncoder("qwen3-vl-8b", "qwen3vl_8b"),
    TinyEncoder("qwen3-vl-32b-50-layers", "qwen3vl_32b", {**_NARROW, "num_hidden_layers": 50}),
    TinyEncoder("qwen3.5-0.8b", "qwen35_08b", _QWEN35),
    TinyEncoder("qwen3.5-2b", "qwen35_2b", {**_QWEN35, "hidden_size": 64}),
    TinyEncoder("qwen3.5-4b", "qwen35_4b", _QWEN35),
    TinyEncoder("qwen3.5-9b", "qwen35_9b", _QWEN35),
    TinyEncoder("qwen3.5-27b", "qwen35_27b", _QWEN35),
    TinyEncoder("gemma-2-2b", "gemma2_2b", _NARROW),
    TinyEncoder("gemma-3-4b", "gemma3_4b", {**_NARROW, "num_hidden_layers": 34}),
    TinyEncoder("gemma-3-4b-vision", "gemma3_4b_vision", {**_NARROW, "num_hidden_layers": 34}),
    TinyEncoder("gemma-3-12b", "", {**_NARROW, "num_hidden_layers": 48}),
    TinyEncoder("gemma-4-e2b", "gemma4", {**_NARROW, "num_hidden_layers": 35}),
    TinyEncoder("gemma-4-e4b", "gemma4", {**_NARROW, "num_hidden_layers": 42}),
    TinyEncoder("gemma-4-12b", "gemma4", {**_NARROW, "num_hidden_layers": 48, "vocab_size": 262144}),
    TinyEncoder("gemma-4-31b", "gemma4", {**_NARROW, "num_hidden_layers": 60}),
]
