"""Text encoders whose FP8 scales ComfyUI applies; it tells them apart in `comfy/sd.py` (`detect_te_model`)."""

from dataclasses import replace

from .family import Blocks, Drop, Family, Keep, Key, keys
from .refusals import ACE_WORDS

_LISTS = "convert_to_quant, Learned-Rounding"
_HEAD_NOTE = "lm_head stays (as in Comfy-Org's published files and convert_to_quant): encoding does not use it"

#: Only the language models of ACE-Step 1.5 know so many words: text and sound.
_ACE_LANGUAGE_WORDS = Key("model.embed_tokens.weight", rows=(217204,))
_ACE_ORDER = ("ACE-Step 1.5's language model must be the first file (clip_name1) of ComfyUI's DualCLIPLoader, which "
              "looks for scales in that one only, with its Qwen3 0.6B in bf16 as the second")

_T5_KEYS = (
    *keys("encoder.block.0.layer.0.SelfAttention.q.weight"),
    # T5 v1.1 XXL, or the XXL ("11b") of T5 1.0; all other sizes share the names but not these widths.
    (Key("encoder.block.23.layer.1.DenseReluDense.wi_1.weight", rows=(10240,)),
     Key("encoder.block.23.layer.1.DenseReluDense.wi.weight", rows=(65536,))),
)
_POSITION = "layer.0.SelfAttention.relative_attention_bias"

T5XXL = Family(
    "t5xxl", "T5-XXL text encoder", ("T5_XXL", "T5_XXL_OLD"),
    needs=_T5_KEYS,
    linears=("encoder.block.#.layer.0.SelfAttention.{q,k,v,o}",
             "encoder.block.#.layer.1.DenseReluDense.{wi,wi_0,wi_1,wo}"),
    keep=(Keep("shared", "token embedding", _LISTS, linear=False, table=True),
          Keep("encoder.embed_tokens", "token embedding", _LISTS, linear=False),
          Keep(f"encoder.block.#.{_POSITION}", "position table", _LISTS, linear=False)),
    drop=(Drop("{decoder,lm_head}.**", "decoder half, not used by ComfyUI"),),
    blocks=(Blocks("encoder.block.#", varies=(f"{_POSITION}.weight",)),),
    outer=("{shared,encoder.embed_tokens}.weight", "encoder.final_layer_norm.weight"),
    kind="text_encoders",
    writes_input_scale=True,
)
UMT5XXL = replace(
    T5XXL, name="umt5xxl", title="UMT5-XXL text encoder", classes=("T5_XXL",),
    needs=(*_T5_KEYS, *keys(f"encoder.block.1.{_POSITION}.weight")), writes_input_scale=False)

_LAYER = "{self_attn.{q,k,v,o}_proj,mlp.{gate,up,down}_proj}"
_LANGUAGE = "model.{,language_model.}"
_VISUAL = "{,model.}visual"
_TOKENS = Keep(f"{_LANGUAGE}embed_tokens", "token embedding", "convert_to_quant", linear=False, table=True)
_HEAD = Keep("{,model.}lm_head", "output head, not used for encoding", "Comfy-Org's published files, convert_to_quant")
_LAYERS = (Blocks(f"{_LANGUAGE}layers.#"),)
_OUTER = (f"{_LANGUAGE}embed_tokens.weight",)
_NORM = "model.layers.0.post_attention_layernorm.weight"
_Q_NORM = "model.layers.0.self_attn.q_norm.weight"

LLAMA = Family(
    "llama", "Llama 3.1 text encoder", ("LLAMA3_8",),
    needs=(Key(_NORM, rows=(4096,)), *keys("model.layers.0.self_attn.q_proj.weight")),
    forbids=(_Q_NORM, "model.layers.0.self_attn.k_proj.bias"),
    linears=(f"model.layers.#.{_LAYER}",),
    keep=(_TOKENS, _HEAD), blocks=_LAYERS, outer=_OUTER, kind="text_encoders",
)
MISTRAL = replace(
    LLAMA, name="mistral", title="Mistral text encoder",
    classes=("MISTRAL3_24B", "MISTRAL3_24B_PRUNED_FLUX2", "MINISTRAL_3_3B"),
    needs=(Key(_NORM, rows=(5120, 3072)), *keys("model.layers.0.self_attn.q_proj.weight")))
QWEN3 = replace(
    LLAMA, name="qwen3", title="Qwen3 text encoder",
    classes=("QWEN3_06B", "QWEN3_2B", "QWEN3_4B", "QWEN3_8B"),
    needs=(Key(_NORM, rows=(1024, 2048, 2560, 4096)), *keys(_Q_NORM)),
    forbids=("model.layers.0.post_feedforward_layernorm.weight", ACE_WORDS),
    linears=(f"model.layers.#.{_LAYER}", f"model.audio_decoder.layers.#.{_LAYER}",
             "model.{,audio_decoder.}layers.#.{self_attn.qkv_proj,mlp.gate_up_proj}"),
    keep=(_TOKENS, _HEAD,
          Keep("model.embed_tokens_{prefill,audio}", "token embedding", linear=False, table=True),
          Keep("model.lm_head_pruned", "output head", "no list published"),
          Keep("model.audio_decoder.{projection,audio_heads.#}", "projection of the sound, sensitive",
               "no list published"),
          Keep("model.{audio_decoder.pos_embedding,audio_extra_embedding}", "embedding", linear=False)),
    blocks=(*_LAYERS, Blocks("model.audio_decoder.layers.#")),
    outer=("model.{embed_tokens,embed_tokens_prefill}.weight",),
    advice=((_ACE_LANGUAGE_WORDS, _ACE_ORDER),), notes=f"{_HEAD_NOTE}; {_ACE_ORDER}")

_TOWER = f"{_VISUAL}.blocks.#.{{attn.{{qkv,proj}},mlp.{{linear_fc1,linear_fc2,gate_proj,up_proj,down_proj}}}}"
_MERGER = f"{_VISUAL}.{{merger,deepstack_merger_list.#}}.{{mlp.{{0,2}},linear_fc1,linear_fc2}}"
_POSITIONS = Keep(f"{_VISUAL}.pos_embed", "position table", linear=False)
_VISUAL_BLOCKS = Blocks(f"{_VISUAL}.blocks.#")

QWEN25_VL = Family(
    "qwen25_vl", "Qwen2.5-VL text encoder", ("QWEN25_3B", "QWEN25_7B"),
    needs=(Key("model.layers.0.self_attn.k_proj.bias", rows=(256, 512)),),
    linears=(f"model.layers.#.{_LAYER}", _TOWER, _MERGER),
    keep=(_TOKENS, _HEAD), blocks=(*_LAYERS, _VISUAL_BLOCKS), outer=_OUTER, kind="text_encoders",
)
QWEN3_VL = Family(
    "qwen3_vl", "Qwen3-VL text encoder", ("QWEN3VL_4B", "QWEN3VL_8B", "QWEN3VL_32B"),
    needs=keys(f"{_VISUAL}.deepstack_merger_list.0.norm.weight", f"{_LANGUAGE}layers.0.self_attn.q_proj.weight"),
    linears=(f"{_LANGUAGE}layers.#.{_LAYER}", _TOWER, _MERGER),
    keep=(_TOKENS, _HEAD, _POSITIONS), blocks=(*_LAYERS, _VISUAL_BLOCKS), outer=_OUTER, kind="text_encoders",
    notes=_HEAD_NOTE,
)
QWEN35 = Family(
    "qwen35", "Qwen3.5 text encoder", ("QWEN35_08B", "QWEN35_2B", "QWEN35_4B", "QWEN35_9B", "QWEN35_27B"),
    needs=keys(f"{_LANGUAGE}layers.0.linear_attn.A_log", f"{_LANGUAGE}layers.0.input_layernorm.weight"),
    linears=(f"{_LANGUAGE}layers.#.{_LAYER}", f"{_LANGUAGE}layers.#.linear_attn.{{in_proj_qkv,in_proj_z,out_proj}}",
             _TOWER, _MERGER),
    keep=(_TOKENS, _HEAD, _POSITIONS,
          Keep(f"{_LANGUAGE}layers.#.linear_attn.{{in_proj_a,in_proj_b}}", "gates of the linear attention, tiny",
               "convert_to_quant")),
    blocks=(Blocks(f"{_LANGUAGE}layers.#", varies=("linear_attn.**", "self_attn.**")), _VISUAL_BLOCKS),
    outer=_OUTER, kind="text_encoders", notes=_HEAD_NOTE,
)

_GEMMA_NORM = "model.layers.0.post_feedforward_layernorm.weight"
_GEMMA_TOWER = "vision_model.encoder.layers.#.{self_attn.{q,k,v,o,out}_proj,mlp.{fc1,fc2,gate_proj,up_proj,down_proj}}"
_GEMMA_KEEP = (
    _TOKENS, _HEAD,
    Keep("vision_model.{embeddings.position_embedding,patch_embedder.position_embedding_table}", "position table",
         linear=False),
    Keep("text_embedding_projection.{,video_,audio_}aggregate_embed", "projection of the text, sensitive",
         "convert_to_quant"),
)

GEMMA2 = Family(
    "gemma2", "Gemma 2 text encoder", ("GEMMA_2_2B",),
    needs=keys(_GEMMA_NORM), forbids=(_Q_NORM,),
    linears=(f"model.layers.#.{_LAYER}",),
    keep=(_TOKENS, _HEAD), blocks=_LAYERS, outer=_OUTER, kind="text_encoders",
)
GEMMA3 = Family(
    "gemma3", "Gemma 3 text encoder", ("GEMMA_3_4B", "GEMMA_3_4B_VISION"),
    needs=keys(_GEMMA_NORM, _Q_NORM),
    linears=(f"model.layers.#.{_LAYER}", _GEMMA_TOWER),
    keep=_GEMMA_KEEP, blocks=(*_LAYERS, Blocks("vision_model.encoder.layers.#")), outer=_OUTER, kind="text_encoders",
)
#: As large as Gemma 4 12B, which has no v_proj in every sixth layer, and smaller than Gemma 4 31B.
GEMMA3_12B = replace(
    GEMMA3, name="gemma3_12b", title="Gemma 3 12B text encoder", classes=("GEMMA_3_12B",),
    needs=keys(_GEMMA_NORM, "model.layers.47.self_attn.q_norm.weight", "model.layers.5.self_attn.v_proj.weight"),
    forbids=("model.layers.59.self_attn.q_norm.weight",))
GEMMA4 = Family(
    "gemma4", "Gemma 4 text encoder", ("GEMMA_4_E2B", "GEMMA_4_E4B", "GEMMA_4_12B", "GEMMA_4_31B"),
    needs=keys(_GEMMA_NORM, "model.layers.34.self_attn.q_norm.weight"),
    linears=(f"model.layers.#.{_LAYER}",),
    keep=(
        *_GEMMA_KEEP,
        Keep("model.{layers.#.{per_layer_input_gate,per_layer_projection},per_layer_model_projection}",
             "input of each layer, small", "convert_to_quant"),
        Keep("model.embed_tokens_per_layer", "token embedding", linear=False, table=True),
        Keep("{multi_modal_projector,audio_projector}.embedding_projection",
             "projection of picture and sound, sensitive", "convert_to_quant"),
        Keep("vision_model.{patch_dense,patch_embedder.input_proj,encoder.layers.#.{self_attn.{q,k,v,o}_proj,"
             "mlp.{gate,up,down}_proj}.linear}", "encoder of pictures, not used for text", "convert_to_quant"),
        Keep("audio_model.{output_proj,subsample_conv_projection.input_proj_linear,layers.#.{self_attn.{{q,k,v}_proj.linear,"
             "post.linear,relative_k_proj},{feed_forward{1,2}.ffw_layer_{1,2},lconv1d.linear_{start,end}}.linear}}",
             "encoder of sound, not used for text", "convert_to_quant"),
    ),
    blocks=(Blocks("model.layers.#", varies=("self_attn.v_proj.weight",)),), outer=_OUTER, kind="text_encoders",
    notes="E2B, E4B: the encoders of pictures and sound are a tenth of the model (convert_to_quant keeps them)",
)
GPT_OSS = Family(
    "gpt_oss", "GPT-OSS text encoder", ("GPT_OSS_20B",),
    needs=keys("layers.0.self_attn.sinks", "layers.0.mlp.experts.gate_up_proj.weight"),
    linears=("layers.#.self_attn.{q,k,v,o}_proj",),
    keep=(Keep("embed_tokens", "token embedding", linear=False, table=True),
          Keep("layers.#.mlp.router", "router of the experts, no Linear", linear=False)),
    blocks=(Blocks("layers.#"),), outer=("embed_tokens.weight",), kind="text_encoders",
)
