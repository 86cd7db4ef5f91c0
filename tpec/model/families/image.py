"""Image models: Flux and its relatives, and the transformers with their own text branch."""

from .family import Blocks, Family, Keep, Key, encoder, keys, outer

_FLUX_LISTS = "convert_to_quant, Learned-Rounding, SDNQ"
_CTQ = "convert_to_quant"
_NID = "ComfyUI-mixed-quantizer"
_QK_NORM = "double_blocks.0.img_attn.norm.key_norm.{scale,weight}"
CLIP = "ComfyUI applies no FP8 scales in CLIP text encoders"
_T5 = encoder("t5xxl", "t5xxl")
_CLIP_L = encoder("clip_l", "", CLIP)

FLUX_BLOCKS = (Blocks("double_blocks.#"), Blocks("single_blocks.#"))
FLUX_LINEARS = (
    "double_blocks.#.{img,txt}_{attn.{qkv,proj},mlp.{0,2}}",
    "single_blocks.#.{linear1,linear2}",
)
MODULATION_LINEARS = ("double_blocks.#.{img,txt}_mod.lin", "single_blocks.#.modulation.lin")
_FINAL = "final_layer.{linear,adaLN_modulation.1}"

FLUX = Family(
    "flux", "Flux", ("Flux", "FluxInpaint", "FluxSchnell", "LongCatImage"),
    needs=keys(_QK_NORM, "img_in.weight", "double_blocks.0.img_mod.lin.weight"),
    forbids=("distilled_guidance_layer.**", "double_stream_modulation_img.**", "txt_in.individual_token_refiner.**",
             "latent_in.weight"),
    linears=(*FLUX_LINEARS, *MODULATION_LINEARS, "double_blocks.#.{img,txt}_mlp.{gate_proj,up_proj,down_proj}"),
    keep=outer(_FLUX_LISTS, input="{img_in,txt_in}", time="{time_in,guidance_in,vector_in}.{in_layer,out_layer}",
               output=_FINAL),
    blocks=FLUX_BLOCKS,
    outer=("txt_in.weight", "time_in.{in,out}_layer.weight", "single_blocks.0.linear1.weight",
           "final_layer.linear.weight", "final_layer.adaLN_modulation.1.weight"),
    encoders=(_T5, _CLIP_L, encoder("qwen25_7b", "qwen25_vl")),
    variants=(("Ovis-Image", "double_blocks.0.img_mlp.gate_proj.weight"),),
)

FLUX2 = Family(
    "flux2", "Flux.2", ("Flux2",),
    needs=keys("double_stream_modulation_img.lin.weight", _QK_NORM, "img_in.weight"),
    linears=FLUX_LINEARS,
    keep=outer("convert_to_quant, musubi-tuner, SDNQ", input="{img_in,txt_in}",
               time="{time_in,guidance_in}.{in_layer,out_layer}", output=_FINAL,
               shared="{double_stream_modulation_img,double_stream_modulation_txt,single_stream_modulation}.lin"),
    blocks=FLUX_BLOCKS,
    outer=("txt_in.weight", "time_in.{in,out}_layer.weight", "double_stream_modulation_txt.lin.weight",
           "single_stream_modulation.lin.weight", "single_blocks.0.linear1.weight", "final_layer.linear.weight",
           "final_layer.adaLN_modulation.1.weight"),
    encoders=(encoder("qwen3_4b", "qwen3"), encoder("qwen3_8b", "qwen3"), encoder("mistral3_24b", "mistral")),
    notes="klein 4B: its shared modulation is a larger part of the model (convert_to_quant keeps it)",
)

CHROMA = Family(
    "chroma", "Chroma", ("Chroma", "ChromaRadiance"),
    needs=keys(_QK_NORM, "distilled_guidance_layer.{,0.}norms.0.{scale,weight}"),
    linears=(*FLUX_LINEARS, "distilled_guidance_layer.{,0.}layers.#.{in_layer,out_layer}"),
    keep=(
        *outer(_FLUX_LISTS, input="{img_in,txt_in}", output="final_layer.linear"),
        Keep("{nerf_image_embedder.embedder.0,nerf_blocks.#.param_generator,nerf_final_layer.linear}",
             "pixel decoder, computed in float32", _CTQ),
        Keep("distilled_guidance_layer.{,0.}layers.#.{in_layer,out_layer}", "distilled guidance, kept as asked",
             "Learned-Rounding", when="keep_distillation"),
        Keep("distilled_guidance_layer.{,0.}{in_proj,out_proj}", "projection of the distilled guidance, sensitive",
             "Learned-Rounding"),
    ),
    blocks=(*FLUX_BLOCKS, Blocks("distilled_guidance_layer.{,0.}{layers,norms}.#"), Blocks("nerf_blocks.#")),
    outer=("txt_in.weight", "{img_in,img_in_patch}.weight", "distilled_guidance_layer.{,0.}in_proj.weight",
           "distilled_guidance_layer.{,0.}out_proj.weight", "single_blocks.0.linear1.weight",
           "{final_layer.linear,nerf_final_layer.linear,nerf_final_layer_conv.conv}.weight"),
    encoders=(encoder("t5xxl", "t5xxl", prefix="cond_stage_model."),),
    variants=(("Chroma Radiance", "nerf_blocks.0.norm.{scale,weight}"),),
    notes="Radiance: its pixel decoder is 6 % of the model and runs in float32 (convert_to_quant keeps it)",
)

SD3 = Family(
    "sd3", "Stable Diffusion 3", ("SD3",),
    needs=keys("joint_blocks.0.context_block.attn.qkv.weight", "x_embedder.proj.weight"),
    linears=("joint_blocks.#.{x_block,context_block}.{attn.{qkv,proj},mlp.{fc1,fc2},adaLN_modulation.1}",
             "joint_blocks.#.x_block.attn2.{qkv,proj}",
             "context_processor.layers.#.{attn.{qkv,proj},mlp.{fc1,fc2}}"),
    keep=outer(_NID, text="context_embedder", time="{t_embedder,y_embedder}.mlp.{0,2}", output=_FINAL),
    # The last block has no text branch behind its attention; 3.5 medium has a second attention in its first blocks.
    blocks=(Blocks("joint_blocks.#", varies=("context_block.**", "x_block.attn2.**")),),
    outer=("context_embedder.weight", "t_embedder.mlp.0.weight", "final_layer.linear.weight",
           "final_layer.adaLN_modulation.1.weight"),
    encoders=(_T5, _CLIP_L, encoder("clip_g", "", CLIP)),
)

AURAFLOW = Family(
    "auraflow", "AuraFlow", ("AuraFlow",),
    needs=keys("double_layers.0.attn.w1q.weight", "positional_encoding"),
    linears=("double_layers.#.{attn.{w1,w2}{q,k,v,o},mlp{C,X}.{c_fc1,c_fc2,c_proj},mod{C,X}.1}",
             "single_layers.#.{attn.w1{q,k,v,o},mlp.{c_fc1,c_fc2,c_proj},modCX.1}"),
    keep=outer(_NID, input="init_x_linear", text="cond_seq_linear", time="t_embedder.mlp.{0,2}",
               output="{modF.1,final_linear}"),
    blocks=(Blocks("double_layers.#"), Blocks("single_layers.#")),
    outer=("init_x_linear.weight", "cond_seq_linear.weight", "t_embedder.mlp.0.weight", "modF.1.weight",
           "final_linear.weight", "single_layers.0.attn.w1q.weight"),
    encoders=(encoder("pile_t5xl", "", "ComfyUI applies no FP8 scales in AuraFlow's T5"),),
)

PIXART = Family(
    "pixart", "PixArt", ("PixArtAlpha", "PixArtSigma"),
    needs=keys("t_block.1.weight", "blocks.0.cross_attn.kv_linear.weight"),
    forbids=("genre_embedder.weight",),
    linears=("blocks.#.{attn.{qkv,proj},cross_attn.{q_linear,kv_linear,proj},mlp.{fc1,fc2}}",),
    keep=outer(_NID, text="y_embedder.y_proj.{fc1,fc2}", shared="t_block.1",
               time="{t_embedder,csize_embedder,ar_embedder}.mlp.{0,2}", output="final_layer.linear"),
    blocks=(Blocks("blocks.#"),),
    outer=("x_embedder.proj.weight", "t_embedder.mlp.0.weight", "y_embedder.y_proj.fc1.weight",
           "final_layer.linear.weight"),
    encoders=(encoder("t5xxl", "", "ComfyUI applies no FP8 scales to the T5 inside PixArt checkpoints, only in "
                      "a file of its own"),),
    variants=(("PixArt alpha", "ar_embedder.mlp.0.weight"),),
)

HUNYUAN_DIT = Family(
    "hunyuan_dit", "HunyuanDiT", ("HunyuanDiT", "HunyuanDiT1"),
    needs=keys("mlp_t5.0.weight", "extra_embedder.0.weight"),
    linears=("blocks.#.{attn1.{Wqkv,out_proj},attn2.{q_proj,kv_proj,out_proj},mlp.{fc1,fc2},default_modulation.1}",
             "blocks.#.skip_linear"),
    keep=(
        *outer(_NID, text="{mlp_t5.{0,2},pooler.{k_proj,q_proj,v_proj,c_proj}}",
               time="{t_embedder.mlp.{0,2},extra_embedder.{0,2}}", output=_FINAL),
        Keep("style_embedder", "embedding", linear=False),
    ),
    blocks=(Blocks("blocks.#", varies=("skip_linear.*", "skip_norm.*")),),
    outer=("x_embedder.proj.weight", "t_embedder.mlp.0.weight", "mlp_t5.2.weight", "final_layer.linear.weight",
           "final_layer.adaLN_modulation.1.weight"),
    encoders=(encoder("hydit_clip", "", CLIP),
              encoder("mt5xl", "", "ComfyUI applies no FP8 scales in HunyuanDiT's T5")),
    notes="1.1: its text and size embedders are a larger part of the model (ComfyUI-mixed-quantizer keeps them)",
)

_LUMINA_LINEARS = (
    "{layers,noise_refiner,context_refiner}.#.{attention.{qkv,out},feed_forward.{w1,w2,w3},adaLN_modulation.{0,1}}",
    "siglip_refiner.#.{attention.{qkv,out},feed_forward.{w1,w2,w3}}",
)
_LUMINA_BLOCKS = (Blocks("{layers,noise_refiner,context_refiner,siglip_refiner}.#"),)
_LUMINA_OUTER = ("x_embedder.weight", "t_embedder.mlp.0.weight", "layers.0.attention.qkv.weight",
                 "context_refiner.0.attention.qkv.weight")
_LUMINA_KEEP = outer("convert_to_quant, ComfyUI-mixed-quantizer, diffusers", input="x_embedder",
                     text="{cap_embedder.1,siglip_embedder.1,clip_text_pooled_proj.1}",
                     time="{t_embedder.mlp.{0,2},time_text_embed.1}", output=_FINAL)

LUMINA2 = Family(
    "lumina2", "Lumina 2", ("Lumina2",),
    needs=keys("cap_embedder.1.weight", "noise_refiner.0.attention.k_norm.weight"),
    linears=_LUMINA_LINEARS[:1],
    keep=_LUMINA_KEEP,
    blocks=_LUMINA_BLOCKS,
    outer=(*_LUMINA_OUTER, "final_layer.linear.weight"),
    encoders=(encoder("gemma2_2b", "gemma2"),),
    variants=(("NewBie", "clip_text_pooled_proj.0.weight"),),
)

Z_IMAGE = Family(
    "z_image", "Z-Image", ("ZImage", "ZImagePixelSpace"),
    needs=(Key("cap_embedder.1.weight", rows=(3840,)), *keys("noise_refiner.0.attention.k_norm.weight")),
    linears=_LUMINA_LINEARS,
    keep=(
        *_LUMINA_KEEP,
        Keep("dec_net.{cond_embed,input_embedder.embedder.0,res_blocks.#.{mlp.{0,2},adaLN_modulation.1},"
             "final_layer.linear}", "pixel decoder, whose dtype ComfyUI's code reads", "ComfyUI's pixel decoder"),
    ),
    blocks=(*_LUMINA_BLOCKS, Blocks("dec_net.res_blocks.#")),
    outer=(*_LUMINA_OUTER, "{final_layer,dec_net.final_layer}.linear.weight"),
    encoders=(encoder("qwen3_4b", "qwen3"),),
    notes="pixel space: its pixel decoder is 5 % of the model, and ComfyUI reads its dtype",
    variants=(("Z-Image in pixel space", "dec_net.cond_embed.weight"), ("Z-Image omni", "siglip_embedder.0.weight")),
)

PIXELDIT = Family(
    "pixeldit", "PixelDiT", ("PixelDiTT2I", "PiD"),
    needs=keys("core.pixel_embedder.proj.weight", "core.patch_blocks.0.attn.qkv_x.weight"),
    linears=("core.patch_blocks.#.{attn.{qkv,proj}_{x,y},mlp_{x,y}.{w1,w2,w3},adaLN_modulation_{img,txt}.0}",
             "core.pixel_blocks.#.{compress_to_attn,expand_from_attn,attn.{qkv,proj},mlp.{fc1,fc2}}"),
    keep=(
        *outer(_NID, input="core.{pixel_embedder,s_embedder}.proj", text="core.y_embedder.proj",
               time="core.t_embedder.mlp.{0,2}", output="core.final_layer.linear"),
        Keep("lq_proj.{output_heads.#,gate_modules.#.content_proj}", "projection of the latent image, sensitive"),
        Keep("core.pixel_blocks.#.adaLN_modulation.#", "ComfyUI splits it on load, its scale would be lost",
             linear=False),
    ),
    blocks=(Blocks("core.patch_blocks.#"), Blocks("core.pixel_blocks.#")),
    outer=("core.s_embedder.proj.weight", "core.y_embedder.proj.weight", "core.t_embedder.mlp.0.weight",
           "core.pixel_blocks.0.attn.qkv.weight", "core.final_layer.linear.weight"),
    encoders=(encoder("gemma2_2b", "", "ComfyUI applies no FP8 scales to the Gemma inside PixelDiT checkpoints, "
                      "only in a file of its own"),),
    variants=(("PiD", "lq_proj.latent_proj.0.weight"),),
)

HIDREAM = Family(
    "hidream", "HiDream-I1", ("HiDream",),
    needs=keys("caption_projection.0.linear.weight", "double_stream_blocks.0.block.attn1.to_q.weight"),
    linears=("{double,single}_stream_blocks.#.block.{adaLN_modulation.1,attn1.to_{q,k,v,out}}",
             "{double,single}_stream_blocks.#.block.ff_i.shared_experts.{w1,w2,w3}",
             "{double,single}_stream_blocks.#.block.ff_i.experts.#.{w1,w2,w3}",
             "double_stream_blocks.#.block.{attn1.to_{q,k,v,out}_t,ff_t.{w1,w2,w3}}"),
    keep=(
        *outer(_NID, input="x_embedder.proj", text="caption_projection.#.linear",
               time="{t_embedder.timestep_embedder,p_embedder.pooled_embedder}.{linear_1,linear_2}", output=_FINAL),
        Keep("{double,single}_stream_blocks.#.block.ff_i.gate", "router of the experts, no Linear", linear=False),
    ),
    blocks=(Blocks("double_stream_blocks.#"), Blocks("single_stream_blocks.#"), Blocks("caption_projection.#")),
    outer=("x_embedder.proj.weight", "t_embedder.timestep_embedder.linear_1.weight",
           "p_embedder.pooled_embedder.linear_1.weight", "single_stream_blocks.0.block.attn1.to_q.weight",
           "final_layer.linear.weight", "final_layer.adaLN_modulation.1.weight"),
)
