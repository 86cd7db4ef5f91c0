"""The text encoder files that ComfyUI knows: the few tensors that identify each, and which go into one loader
together."""

from dataclasses import dataclass, field

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Encoder:
    """A text encoder file. `kind` is ComfyUI's TEModel; `seed` is enough of the file for ComfyUI to tell what it is."""

    name: str
    kind: str
    seed: Shapes
    clip_type: str = "STABLE_DIFFUSION"                 # a loader type that builds its class
    beside: str | None = None                           # the file that it is loaded with; alone it is another
    prefixes: dict[str, str] = field(default_factory=dict)   # module's prefix -> the published file's


def llm(hidden: int, *more: str, q_norm: bool = True, **shapes: tuple[int, ...]) -> Shapes:
    base = {"model.layers.0.post_attention_layernorm.weight": (hidden,),
            "model.layers.0.self_attn.k_proj.weight": (hidden, hidden)}
    norm = {"model.layers.0.self_attn.q_norm.weight": (128,)} if q_norm else {}
    return base | norm | {name: (1,) for name in more} | shapes


def gemma(hidden: int, last: int | None, *more: str) -> Shapes:
    top = {f"model.layers.{layer}.self_attn.q_norm.weight": (1,) for layer in ([0, last] if last is not None else [])}
    return {"model.layers.0.post_feedforward_layernorm.weight": (hidden,)} | top | {name: (1,) for name in more}


def qwen35(hidden: int) -> Shapes:
    return {"model.language_model.layers.0.linear_attn.A_log": (1,),
            "model.language_model.layers.0.input_layernorm.weight": (hidden,)}


def qwen25(rows: int) -> Shapes:
    return {"model.layers.0.self_attn.k_proj.bias": (rows,)}


def qwen3vl(hidden: int) -> Shapes:
    return {"model.visual.deepstack_merger_list.0.norm.weight": (1,), "model.visual.merger.linear_fc2.weight": (hidden,
                                                                                                                4096)}


#: Words of text and of sound in MiniMax Music 3.
MUSIC_TEXT, MUSIC_SOUNDS = 151675, 16384
CLIP = "text_model.encoder.layers.{}.mlp.fc1.weight"
T5_GATED = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"
T5_BASE = {"encoder.block.0.layer.0.SelfAttention.k.weight": (768, 768)}
MULTIMODAL = {"model.": "model.language_model.", "visual.": "model.visual.", "model.lm_head.": "lm_head."}

ENCODERS = [
    Encoder("clip-l", "CLIP_L", {CLIP.format(0): (3072, 768)}),
    Encoder("clip-h", "CLIP_H", {CLIP.format(22): (4096, 1024)}),
    Encoder("clip-g", "CLIP_G", {CLIP.format(30): (5120, 1280)}),
    Encoder("t5-xxl", "T5_XXL", {T5_GATED: (10240, 4096)}, "SD3"),
    Encoder("umt5-xxl", "T5_XXL", {T5_GATED: (10240, 4096)}, "WAN"),
    Encoder("t5-1.0-xxl", "T5_XXL_OLD", {"encoder.block.23.layer.1.DenseReluDense.wi.weight": (65536, 1024)}, "COSMOS"),
    Encoder("pile-t5-xl", "T5_XL", {T5_GATED: (5120, 2048)}),
    Encoder("t5-base", "T5_BASE", T5_BASE, "STABLE_AUDIO"),
    Encoder("umt5-base", "T5_BASE", T5_BASE, "ACE"),
    Encoder("t5-gemma", "T5_GEMMA", {"model.encoder.layers.0.pre_self_attn_layernorm.weight": (768,)}, "STABLE_AUDIO"),
    Encoder("byt5-small-glyph", "BYT5_SMALL_GLYPH", {"encoder.block.0.layer.0.SelfAttention.k.weight": (384, 1472)},
            "HUNYUAN_IMAGE", beside="qwen2.5-vl-7b"),
    Encoder("jina-clip-2", "JINA_CLIP_2", {"model.encoder.layers.0.mixer.Wqkv.weight": (3072, 1024)}),
    Encoder("llama-3.1-8b", "LLAMA3_8", llm(4096, q_norm=False), "HIDREAM"),
    Encoder("llava-llama-3-8b", "LLAMA3_8", llm(4096, q_norm=False), "HUNYUAN_VIDEO", beside="clip-l"),
    Encoder("mistral-3-24b", "MISTRAL3_24B", llm(5120, "model.layers.39.post_attention_layernorm.weight", q_norm=False),
            "FLUX2"),
    Encoder("mistral-3-24b-pruned", "MISTRAL3_24B_PRUNED_FLUX2", llm(5120, q_norm=False), "FLUX2"),
    Encoder("ministral-3-3b", "MINISTRAL_3_3B", llm(3072, q_norm=False)),
    Encoder("gpt-oss-20b", "GPT_OSS_20B", {"layers.0.self_attn.sinks": (64,),
                                           "layers.0.mlp.experts.gate_up_proj.weight": (32, 5760, 2880)},
            "LENS"),
    Encoder("qwen2.5-vl-3b", "QWEN25_3B", qwen25(256), "OMNIGEN2"),
    Encoder("qwen2.5-vl-7b", "QWEN25_7B", qwen25(512), "QWEN_IMAGE"),
    Encoder("qwen3-0.6b", "QWEN3_06B", llm(1024)),
    Encoder("ace-1.5-qwen3-0.6b", "QWEN3_06B", llm(1024), "ACE", beside="qwen3-2b"),
    Encoder("ace-1.5-lm-qwen3-2b", "QWEN3_2B", llm(2048), "ACE", beside="qwen3-0.6b"),
    Encoder("ace-1.5-lm-qwen3-4b", "QWEN3_4B", llm(2560), "ACE", beside="qwen3-0.6b"),
    Encoder("qwen3-2b", "QWEN3_2B", llm(2048), "OVIS"),
    Encoder("qwen3-4b", "QWEN3_4B", llm(2560), "LUMINA2"),
    Encoder("qwen3-8b", "QWEN3_8B", llm(4096), "FLUX2"),
    Encoder("qwen3-vl-4b", "QWEN3VL_4B", qwen3vl(2560), prefixes=MULTIMODAL),
    Encoder("qwen3-vl-8b", "QWEN3VL_8B", qwen3vl(4096), prefixes=MULTIMODAL),
    Encoder("qwen3-vl-32b-50-layers", "QWEN3VL_32B", {"visual.deepstack_merger_list.0.norm.weight": (4608,),
                                                      "model.layers.49.self_attn.q_proj.weight": (8192, 5120)},
                                                      "MINIMAX"),
    Encoder("qwen3.5-0.8b", "QWEN35_08B", qwen35(1024), prefixes=MULTIMODAL),
    Encoder("qwen3.5-2b", "QWEN35_2B", qwen35(2048), prefixes=MULTIMODAL),
    Encoder("qwen3.5-4b", "QWEN35_4B", qwen35(2560), prefixes=MULTIMODAL),
    Encoder("qwen3.5-9b", "QWEN35_9B", qwen35(4096), prefixes=MULTIMODAL),
    Encoder("qwen3.5-27b", "QWEN35_27B", qwen35(5120), prefixes=MULTIMODAL),
    Encoder("minimax-music-3", "QWEN3_8B", {"model.audio_decoder.projection.weight": (1,)}, "MINIMAX"),
    Encoder("minimax-music-3-pruned", "QWEN3_8B", {
        "model.audio_decoder.projection.weight": (1,), "model.embed_tokens_prefill.weight": (MUSIC_TEXT, 4096),
        "model.lm_head_pruned.weight": (MUSIC_SOUNDS + 1, 4096), **{
            f"model.{part}layers.0.{name}.weight": (1,) for part in ("", "audio_decoder.")
            for name in ("self_attn.qkv_proj", "mlp.gate_up_proj")}}, "MINIMAX"),
    Encoder("gemma-2-2b", "GEMMA_2_2B", gemma(2304, None), "LUMINA2"),
    Encoder("gemma-3-4b", "GEMMA_3_4B", gemma(2560, 33), "LUMINA2"),
    Encoder("gemma-3-4b-vision", "GEMMA_3_4B_VISION", gemma(2560, 33, "vision_model.embeddings.patch_embedding.weight"),
            "LUMINA2"),
    Encoder("gemma-3-12b", "GEMMA_3_12B", gemma(3840, 47, "model.layers.5.self_attn.v_proj.weight")),
    Encoder("gemma-4-e2b", "GEMMA_4_E2B", gemma(1536, 34)),
    Encoder("gemma-4-e4b", "GEMMA_4_E4B", gemma(2560, 41)),
    Encoder("gemma-4-12b", "GEMMA_4_12B", gemma(3840, 47)),
    Encoder("gemma-4-31b", "GEMMA_4_31B", gemma(5376, 59)),
]

# Files that a loader with several inputs takes together: its type, and the files.
TOGETHER = [
    ("STABLE_DIFFUSION", ["clip-l", "clip-g"]), ("SD3", ["clip-l", "t5-xxl"]), ("FLUX", ["clip-l", "t5-xxl"]),
    ("HUNYUAN_VIDEO", ["clip-l", "llava-llama-3-8b"]), ("HIDREAM", ["t5-xxl", "llama-3.1-8b"]),
    ("HUNYUAN_IMAGE", ["qwen2.5-vl-7b", "byt5-small-glyph"]), ("HUNYUAN_VIDEO_15", ["qwen2.5-vl-7b",
                                                                                    "byt5-small-glyph"]),
    ("KANDINSKY5", ["clip-l", "qwen2.5-vl-7b"]), ("KANDINSKY5_IMAGE", ["clip-l", "qwen2.5-vl-7b"]),
    ("NEWBIE", ["gemma-3-4b", "jina-clip-2"]), ("ACE", ["ace-1.5-qwen3-0.6b", "ace-1.5-lm-qwen3-2b"]),
    ("ACE", ["ace-1.5-qwen3-0.6b", "ace-1.5-lm-qwen3-4b"]), ("ACE", ["ace-1.5-lm-qwen3-2b", "ace-1.5-qwen3-0.6b"]),
    ("LTXV", ["gemma-3-12b", "ltx-2-text-projection"]),
    ("SD3", ["clip-l", "clip-g", "t5-xxl"]), ("HIDREAM", ["clip-l", "clip-g", "t5-xxl", "llama-3.1-8b"]),
]
