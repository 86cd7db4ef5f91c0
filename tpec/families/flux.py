"""Flux and the models that share its blocks."""

from .family import Blocks, Encoder, Family, Keep, keys

_PUBLISHED = "convert_to_quant, Learned-Rounding, SDNQ"
_QK_NORM = "double_blocks.0.img_attn.norm.key_norm.{scale,weight}"

_BLOCKS = (Blocks("double_blocks"), Blocks("single_blocks"))
_BLOCK_LINEARS = (
    "double_blocks.#.{img,txt}_{attn.{qkv,proj},mlp.{0,2}}",
    "single_blocks.#.{linear1,linear2}",
)
_INPUT = Keep("{img_in,txt_in,img_in_patch}", "input projection, sensitive", _PUBLISHED)
_VECTORS = Keep("{time_in,guidance_in,vector_in}.{in_layer,out_layer}",
                "time, guidance or vector embedder, sensitive", _PUBLISHED)
_FINAL = Keep("final_layer.{linear,adaLN_modulation.1}", "output projection, sensitive", _PUBLISHED)
_VECTOR_LINEARS = "{time_in,guidance_in,vector_in}.{in_layer,out_layer}"

FLUX = Family(
    "flux", "Flux", ("Flux", "FluxInpaint", "FluxSchnell", "LongCatImage"),
    needs=keys(_QK_NORM, "img_in.weight", "double_blocks.0.img_mod.lin.weight"),
    forbids=("distilled_guidance_layer.**", "**controlnet_**", "double_stream_modulation_img.**",
             "txt_in.individual_token_refiner.**", "latent_in.weight"),
    linears=(
        *_BLOCK_LINEARS,
        "double_blocks.#.{img,txt}_{mod.lin,mlp.{gate_proj,up_proj,down_proj}}",
        "single_blocks.#.modulation.lin",
        "img_in", "txt_in", _VECTOR_LINEARS, "final_layer.{linear,adaLN_modulation.1}",
    ),
    keep=(_INPUT, _VECTORS, _FINAL),
    blocks=_BLOCKS,
    outer=("txt_in.weight", "time_in.{in,out}_layer.weight", "single_blocks.0.linear1.weight",
           "final_layer.linear.weight", "final_layer.adaLN_modulation.1.weight"),
    encoders=(Encoder("t5xxl", "text_encoders.t5xxl.transformer.", "t5xxl"),),
)

CHROMA = Family(
    "chroma", "Chroma", ("Chroma", "ChromaRadiance"),
    needs=keys(_QK_NORM, "distilled_guidance_layer.{,0.}norms.0.{scale,weight}"),
    forbids=("**controlnet_**",),
    linears=(
        *_BLOCK_LINEARS,
        "distilled_guidance_layer.{,0.}{in_proj,out_proj,layers.#.{in_layer,out_layer}}",
        "img_in", "txt_in", "final_layer.linear",
        "nerf_image_embedder.embedder.0", "nerf_blocks.#.param_generator", "nerf_final_layer.linear",
    ),
    keep=(
        _INPUT, _FINAL,
        Keep("nerf_**", "pixel decoder, sensitive", "convert_to_quant"),
        Keep("distilled_guidance_layer.**", "distilled guidance, kept as asked", "Learned-Rounding",
             when="keep_distillation"),
        Keep("distilled_guidance_layer.{,0.}{in_proj,out_proj}", "projection of the distilled guidance, sensitive",
             "Learned-Rounding"),
    ),
    blocks=(*_BLOCKS, Blocks("distilled_guidance_layer.{,0.}{layers,norms}"), Blocks("nerf_blocks")),
    outer=("txt_in.weight", "{img_in,img_in_patch}.weight", "distilled_guidance_layer.{,0.}{in,out}_proj.weight",
           "{final_layer.linear,nerf_final_layer.linear,nerf_final_layer_conv.conv}.weight"),
    encoders=(Encoder("t5xxl", "cond_stage_model.t5xxl.transformer.", "t5xxl"),),
    variants=(("Chroma Radiance", "nerf_blocks.0.norm.{scale,weight}"),),
)
