"""The transformers that ComfyUI takes in diffusers layout, in the order in which it looks for them."""

from .layout import Layout, within

_TIME = "time_text_embed.timestep_embedder.linear_"
_TEXT = "time_text_embed.text_embedder.linear_"
_GUIDANCE = "time_text_embed.guidance_embedder.linear_"

AURAFLOW = Layout(
    "AuraFlow", ("joint_transformer_blocks.0.attn.add_k_proj.weight",),
    modules={
        **within("double_layers.#", "joint_transformer_blocks.#", {
            "attn.w2q": "attn.to_q", "attn.w2k": "attn.to_k", "attn.w2v": "attn.to_v", "attn.w2o": "attn.to_out.0",
            "attn.w1q": "attn.add_q_proj", "attn.w1k": "attn.add_k_proj", "attn.w1v": "attn.add_v_proj",
            "attn.w1o": "attn.to_add_out",
            "mlpX.c_fc1": "ff.linear_1", "mlpX.c_fc2": "ff.linear_2", "mlpX.c_proj": "ff.out_projection",
            "mlpC.c_fc1": "ff_context.linear_1", "mlpC.c_fc2": "ff_context.linear_2",
            "mlpC.c_proj": "ff_context.out_projection",
            "modX.1": "norm1.linear", "modC.1": "norm1_context.linear"}),
        **within("single_layers.#", "single_transformer_blocks.#", {
            "attn.w1q": "attn.to_q", "attn.w1k": "attn.to_k", "attn.w1v": "attn.to_v", "attn.w1o": "attn.to_out.0",
            "mlp.c_fc1": "ff.linear_1", "mlp.c_fc2": "ff.linear_2", "mlp.c_proj": "ff.out_projection",
            "modCX.1": "norm1.linear"}),
        "t_embedder.mlp.0": ("time_step_proj.linear_1",),
        "t_embedder.mlp.2": ("time_step_proj.linear_2",),
        "cond_seq_linear": ("context_embedder",),
        "init_x_linear": ("pos_embed.proj",),
        "final_linear": ("proj_out",),
        "modF.1": ("norm_out.linear",),
    },
    tensors={"positional_encoding": "pos_embed.pos_embed", "register_tokens": "register_tokens"},
    swapped=("modF.1",),
)

_SINGLE_TIME = "adaln_single.emb.timestep_embedder.linear_"
_RESOLUTION = "adaln_single.emb.resolution_embedder.linear_"
_RATIO = "adaln_single.emb.aspect_ratio_embedder.linear_"

PIXART = Layout(
    "PixArt", (f"{_SINGLE_TIME}1.bias", "pos_embed.proj.bias"),
    modules={
        **within("blocks.#", "transformer_blocks.#", {
            "attn.qkv": "attn1.to_q attn1.to_k attn1.to_v", "attn.proj": "attn1.to_out.0",
            "cross_attn.q_linear": "attn2.to_q", "cross_attn.kv_linear": "attn2.to_k attn2.to_v",
            "cross_attn.proj": "attn2.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}),
        "csize_embedder.mlp.0": (f"{_RESOLUTION}1",), "csize_embedder.mlp.2": (f"{_RESOLUTION}2",),
        "ar_embedder.mlp.0": (f"{_RATIO}1",), "ar_embedder.mlp.2": (f"{_RATIO}2",),
        "t_embedder.mlp.0": (f"{_SINGLE_TIME}1",), "t_embedder.mlp.2": (f"{_SINGLE_TIME}2",),
        "t_block.1": ("adaln_single.linear",),
        "x_embedder.proj": ("pos_embed.proj",),
        "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
        "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
        "final_layer.linear": ("proj_out",),
    },
    tensors={"blocks.#.scale_shift_table": "transformer_blocks.#.scale_shift_table",
             "final_layer.scale_shift_table": "scale_shift_table",
             "y_embedder.y_embedding": "caption_projection.y_embedding"},
)

_Z_BLOCK = {
    "attention.qkv": "attention.to_q attention.to_k attention.to_v", "attention.out": "attention.to_out.0",
    "attention.q_norm": "attention.norm_q", "attention.k_norm": "attention.norm_k",
    **{name: name for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2", "feed_forward.w1",
                               "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0")},
}

Z_IMAGE = Layout(
    "Z-Image", ("noise_refiner.0.attention.norm_k.weight", "noise_refiner.0.attention.to_k.weight"),
    modules={
        **within("layers.#", "layers.#", _Z_BLOCK),
        **within("noise_refiner.#", "noise_refiner.#", _Z_BLOCK),
        **within("context_refiner.#", "context_refiner.#", _Z_BLOCK),
        "final_layer.linear": ("all_final_layer.2-1.linear",),
        "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
        "x_embedder": ("all_x_embedder.2-1",),
        **{name: (name,) for name in ("cap_embedder.0", "cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")},
    },
    tensors={"x_pad_token": "x_pad_token", "cap_pad_token": "cap_pad_token"},
)

FLUX = Layout(
    "Flux", ("x_embedder.weight", "x_embedder.bias", "context_embedder.weight",
             "transformer_blocks.0.attn.add_q_proj.weight"),
    modules={
        **within("double_blocks.#", "transformer_blocks.#", {
            "img_attn.qkv": "attn.to_q attn.to_k attn.to_v",
            "txt_attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
            "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out",
            "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear",
            "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
            "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
            "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
            "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k"}),
        **within("single_blocks.#", "single_transformer_blocks.#", {
            "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp", "linear2": "proj_out", "modulation.lin": "norm.linear",
            "norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}),
        "img_in": ("x_embedder",), "txt_in": ("context_embedder",),
        "time_in.in_layer": (f"{_TIME}1",), "time_in.out_layer": (f"{_TIME}2",),
        "vector_in.in_layer": (f"{_TEXT}1",), "vector_in.out_layer": (f"{_TEXT}2",),
        "guidance_in.in_layer": (f"{_GUIDANCE}1",), "guidance_in.out_layer": (f"{_GUIDANCE}2",),
        "final_layer.linear": ("proj_out",), "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    tensors={},
    swapped=("final_layer.adaLN_modulation.1",),
)

SD3 = Layout(
    "Stable Diffusion 3", ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"),
    modules={
        **within("joint_blocks.#", "transformer_blocks.#", {
            "x_block.attn.qkv": "attn.to_q attn.to_k attn.to_v", "x_block.attn.proj": "attn.to_out.0",
            "x_block.attn.ln_q": "attn.norm_q", "x_block.attn.ln_k": "attn.norm_k",
            "x_block.attn2.qkv": "attn2.to_q attn2.to_k attn2.to_v", "x_block.attn2.proj": "attn2.to_out.0",
            "x_block.attn2.ln_q": "attn2.norm_q", "x_block.attn2.ln_k": "attn2.norm_k",
            "x_block.adaLN_modulation.1": "norm1.linear",
            "x_block.mlp.fc1": "ff.net.0.proj", "x_block.mlp.fc2": "ff.net.2",
            "context_block.attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
            "context_block.attn.proj": "attn.to_add_out",
            "context_block.attn.ln_q": "attn.norm_added_q", "context_block.attn.ln_k": "attn.norm_added_k",
            "context_block.adaLN_modulation.1": "norm1_context.linear",
            "context_block.mlp.fc1": "ff_context.net.0.proj", "context_block.mlp.fc2": "ff_context.net.2"}),
        "context_embedder": ("context_embedder",), "x_embedder.proj": ("pos_embed.proj",),
        "t_embedder.mlp.0": (f"{_TIME}1",), "t_embedder.mlp.2": (f"{_TIME}2",),
        "y_embedder.mlp.0": (f"{_TEXT}1",), "y_embedder.mlp.2": (f"{_TEXT}2",),
        "final_layer.linear": ("proj_out",), "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    tensors={"pos_embed": "pos_embed.pos_embed"},
    swapped=("final_layer.adaLN_modulation.1",),
    swapped_in_last="joint_blocks.#.context_block.adaLN_modulation.1",
)

TRANSFORMERS = (AURAFLOW, PIXART, Z_IMAGE, FLUX, SD3)
