"""Convolutional networks with attention: the Stable Diffusion UNets and Stable Cascade."""

from .family import Blocks, Encoder, Family, Keep, Key, keys, outer

_CLIP = "ComfyUI applies no FP8 scales in CLIP text encoders"
_PLACES = "{input_blocks.#,middle_block,output_blocks.#}.#"
_ATTENTION = "{attn1,attn2}.to_{q,k,v,out.0}"

_LINEARS = (
    f"{_PLACES}.transformer_blocks.#.{{{_ATTENTION},ff.net.{{0.proj,2}}}}",
    f"{_PLACES}.{{proj_in,proj_out,emb_layers.1}}",
)
_KEEP = outer("ComfyUI-mixed-quantizer, diffusers", time="{time_embed.{0,2},label_emb.#.{0,2}}")
# Blocks of a UNet differ; its convolutions and norms stay as they are.
_BLOCKS = (Blocks("{input,output}_blocks.#", varies=("**",)),)
_OUTER = ("time_embed.0.weight", "time_embed.2.weight", "output_blocks.0.0.in_layers.0.weight", "out.2.weight")
_FIRST = keys("input_blocks.0.0.weight")

SVD = Family(
    "svd", "Stable Video Diffusion", ("SVD_img2vid", "SV3D_u", "SV3D_p"),
    needs=(*_FIRST, *keys("input_blocks.1.1.time_stack.0.attn1.to_q.weight")),
    linears=(*_LINEARS,
             f"{_PLACES}.time_stack.{{emb_layers.1,#.{{{_ATTENTION},{{ff,ff_in}}.net.{{0.proj,2}}}}}}",
             f"{_PLACES}.time_pos_embed.{{0,2}}"),
    keep=_KEEP, blocks=_BLOCKS, outer=_OUTER,
)

SDXL = Family(
    "sdxl", "Stable Diffusion XL",
    ("SDXL", "SDXLRefiner", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B", "SDXL_instructpix2pix"),
    needs=(*_FIRST, Key("label_emb.0.0.weight", columns=(2816, 2560))),
    linears=_LINEARS, keep=_KEEP, blocks=_BLOCKS, outer=_OUTER,
    encoders=(Encoder("clip", "conditioner.embedders.", "", _CLIP),),
)

SD = Family(
    "sd", "Stable Diffusion 1 or 2",
    ("SD15", "SD20", "SD21UnclipL", "SD21UnclipH", "LotusD", "SD_X4Upscaler", "Stable_Zero123", "SD15_instructpix2pix"),
    needs=_FIRST,
    linears=_LINEARS,
    keep=(*_KEEP, Keep("label_emb", "plain torch embedding, ComfyUI applies no scale there", linear=False)),
    blocks=_BLOCKS, outer=_OUTER,
    encoders=(Encoder("clip", "cond_stage_model.", "", _CLIP),),
)

CASCADE = Family(
    "cascade", "Stable Cascade", ("Stable_Cascade_C", "Stable_Cascade_B"),
    needs=keys("clf.1.weight", "{clip_txt_mapper,clip_mapper}.weight"),
    linears=("{down,up}_blocks.#.#.{channelwise.{0,4},attention.attn.out_proj,kv_mapper.1,mapper,mapper_sca,mapper_crp}",),
    keep=outer("ComfyUI-mixed-quantizer", text="{clip_txt_mapper,clip_txt_pooled_mapper,clip_img_mapper,clip_mapper}"),
    blocks=(Blocks("{down,up}_blocks.#", varies=("**",)),),
    outer=("embedding.1.weight", "up_blocks.0.0.channelwise.0.weight"),
    encoders=(Encoder("clip", "text_encoder.", "", _CLIP),),
)
