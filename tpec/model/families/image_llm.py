"""Image models that language models condition, and those that are language models themselves."""

from .family import Blocks, Family, Keep, Key, encoder, keys, outer

_QWEN3VL_4B, _QWEN3VL_8B = encoder("qwen3vl_4b", "qwen3_vl"), encoder("qwen3vl_8b", "qwen3_vl")
_TEXT_EMBED = "time_text_embed.timestep_embedder.{linear_1,linear_2}"

QWEN_IMAGE = Family(
    "qwen_image", "Qwen-Image", ("QwenImage", "MageFlow"),
    needs=keys("txt_norm.weight", "transformer_blocks.0.attn.add_q_proj.weight", "img_in.weight"),
    linears=("transformer_blocks.#.attn.{to_{q,k,v,out.0,add_out},add_{q,k,v}_proj}",
             "transformer_blocks.#.{img,txt}_{mlp.net.{0.proj,2},mod.1}"),
    keep=(
        *outer("convert_to_quant, SDNQ, musubi-tuner", input="img_in", text="txt_in", time=_TEXT_EMBED,
               output="{norm_out.linear,proj_out}"),
        Keep("time_text_embed.addition_t_embedding", "embedding", linear=False),
    ),
    blocks=(Blocks("transformer_blocks.#"),),
    outer=("txt_in.weight", "time_text_embed.timestep_embedder.linear_{1,2}.weight", "norm_out.linear.weight",
           "proj_out.weight"),
    encoders=(encoder("qwen25_7b", "qwen25_vl"), _QWEN3VL_4B),
    variants=(("Qwen-Image Edit 2511", "__index_timestep_zero__"),
              ("Qwen-Image Layered", "time_text_embed.addition_t_embedding.weight")),
)

LENS = Family(
    "lens", "Lens", ("Lens",),
    needs=keys("transformer_blocks.0.attn.norm_added_q.weight", "transformer_blocks.0.img_mlp.w1.weight"),
    linears=("transformer_blocks.#.attn.{img_qkv,txt_qkv,to_out.0,to_add_out}",
             "transformer_blocks.#.{img,txt}_{mlp.{w1,w2,w3},mod.1}"),
    keep=outer("convert_to_quant", input="img_in", text="txt_in", time=_TEXT_EMBED,
               output="{norm_out.linear,proj_out}"),
    blocks=(Blocks("transformer_blocks.#"),),
    outer=("img_in.weight", "txt_in.weight", "time_text_embed.timestep_embedder.linear_{1,2}.weight",
           "norm_out.linear.weight", "proj_out.weight"),
    encoders=(encoder("gpt_oss", "gpt_oss"),),
)

IDEOGRAM4 = Family(
    "ideogram4", "Ideogram 4", ("Ideogram4",),
    needs=keys("embed_image_indicator.weight", "layers.0.attention.qkv.weight"),
    linears=("layers.#.{attention.{qkv,o},feed_forward.{w1,w2,w3},adaln_modulation}",),
    keep=(
        *outer("convert_to_quant, SDNQ, diffusers", input="input_proj", text="llm_cond_proj",
               time="{t_embedding.{mlp_in,mlp_out},adaln_proj}", output="final_layer.{linear,adaln_modulation}"),
        Keep("embed_image_indicator", "embedding", linear=False),
    ),
    blocks=(Blocks("layers.#"),),
    outer=("input_proj.weight", "llm_cond_proj.weight", "t_embedding.mlp_in.weight", "adaln_proj.weight",
           "final_layer.linear.weight"),
    encoders=(encoder("qwen3vl_8b", "qwen3"),),
)

KREA2 = Family(
    "krea2", "Krea 2", ("Krea2",),
    needs=keys("txtfusion.projector.weight", "first.weight"),
    linears=("blocks.#.{attn.{wq,wk,wv,gate,wo},mlp.{gate,up,down}}",
             "txtfusion.{layerwise_blocks,refiner_blocks}.#.{attn.{wq,wk,wv,gate,wo},mlp.{gate,up,down}}"),
    keep=outer("Comfy-Org's published file, convert_to_quant", input="first", text="{txtfusion.projector,txtmlp.{1,3}}",
               time="{tmlp.{0,2},tproj.1}", output="last.linear"),
    blocks=(Blocks("{blocks,txtfusion.layerwise_blocks,txtfusion.refiner_blocks}.#"),),
    outer=("blocks.0.attn.wq.weight", "tmlp.0.weight", "tproj.1.weight", "txtmlp.1.weight", "last.linear.weight"),
    encoders=(_QWEN3VL_4B,),
)

ERNIE = Family(
    "ernie", "Ernie-Image", ("ErnieImage",),
    needs=keys("layers.0.mlp.linear_fc2.weight", "layers.0.self_attention.to_q.weight"),
    linears=("layers.#.{self_attention.to_{q,k,v,out.0},mlp.{gate_proj,up_proj,linear_fc2}}",),
    keep=outer("silveroxides (convert_to_quant)", text="text_proj", time="time_embedding.{linear_1,linear_2}",
               shared="adaLN_modulation.1", output="{final_norm.linear,final_linear}"),
    blocks=(Blocks("layers.#"),),
    outer=("x_embedder.proj.weight", "text_proj.weight", "time_embedding.linear_1.weight", "adaLN_modulation.1.weight",
           "final_norm.linear.weight", "final_linear.weight"),
    encoders=(encoder("ministral3_3b", "mistral"),),
)

JOYIMAGE = Family(
    "joyimage", "JoyImage", ("JoyImage",),
    needs=(Key("img_in.weight", dims=5), *keys(
        "double_blocks.0.attn.img_attn_qkv.weight", "double_blocks.0.attn.img_attn_q_norm.weight",
        "condition_embedder.time_embedder.linear_1.weight")),
    linears=("double_blocks.#.{attn.{img,txt}_attn_{qkv,proj},{img,txt}_mlp.net.{0.proj,2}}",),
    keep=outer("diffusers", text="condition_embedder.text_embedder.{linear_1,linear_2}",
               time="condition_embedder.{time_embedder.{linear_1,linear_2},time_proj}", output="proj_out"),
    blocks=(Blocks("double_blocks.#"),),
    outer=("condition_embedder.text_embedder.linear_1.weight", "proj_out.weight"),
    encoders=(encoder("qwen3vl_8b", "", "ComfyUI applies no FP8 scales to the Qwen3-VL inside JoyImage checkpoints, "
                      "only in a file of its own"),),
)

_OMNI_LISTS = "convert_to_quant, ComfyUI-mixed-quantizer"
_OMNI_KEEP = outer(_OMNI_LISTS, input="{x_embedder,ref_image_patch_embedder}",
                   text="time_caption_embed.caption_embedder.1",
                   time="time_caption_embed.timestep_embedder.{linear_1,linear_2}",
                   output="norm_out.{linear_1,linear_2}")
_OMNI_OUTER = ("x_embedder.weight", "ref_image_patch_embedder.weight", "time_caption_embed.caption_embedder.1.weight",
               "norm_out.linear_1.weight", "norm_out.linear_2.weight", "context_refiner.0.attn.to_q.weight",
               "noise_refiner.0.attn.to_q.weight")
_OMNI_LAYER = "{attn.to_{q,k,v,out.0},feed_forward.{linear_1,linear_2,linear_3}}"

OMNIGEN2 = Family(
    "omnigen2", "OmniGen2", ("Omnigen2",),
    needs=keys("time_caption_embed.timestep_embedder.linear_1.bias", "layers.0.attn.to_q.weight"),
    linears=(f"{{layers,noise_refiner,context_refiner,ref_image_refiner}}.#.{_OMNI_LAYER}",
             "{layers,noise_refiner,ref_image_refiner}.#.norm1.linear"),
    keep=_OMNI_KEEP,
    blocks=(Blocks("{layers,noise_refiner,context_refiner,ref_image_refiner}.#"),),
    outer=_OMNI_OUTER,
    encoders=(encoder("qwen25_3b", "qwen25_vl"),),
)

BOOGU = Family(
    "boogu", "Boogu-Image", ("Boogu",),
    needs=keys("double_stream_layers.0.img_instruct_attn.processor.img_to_q.weight", "x_embedder.weight"),
    linears=(f"{{single_stream_layers,noise_refiner,context_refiner,ref_image_refiner}}.#.{_OMNI_LAYER}",
             "{single_stream_layers,noise_refiner,ref_image_refiner}.#.norm1.linear",
             "double_stream_layers.#.img_instruct_attn.{to_out.0,processor.{img,instruct}_{to_{q,k,v},out}}",
             "double_stream_layers.#.img_self_attn.to_{q,k,v,out.0}",
             "double_stream_layers.#.{img,instruct}_feed_forward.{linear_1,linear_2,linear_3}",
             "double_stream_layers.#.{img_norm{1,2,3},instruct_norm{1,2}}.linear"),
    keep=_OMNI_KEEP,
    blocks=(Blocks("{double_stream_layers,single_stream_layers}.#"),
            Blocks("{noise_refiner,context_refiner,ref_image_refiner}.#")),
    outer=(*_OMNI_OUTER, "single_stream_layers.0.attn.to_q.weight"),
    encoders=(_QWEN3VL_8B,),
)

HIDREAM_O1 = Family(
    "hidream_o1", "HiDream-O1", ("HiDreamO1",),
    needs=keys("t_embedder1.mlp.0.weight", "x_embedder.proj1.weight"),
    linears=("language_model.layers.#.{self_attn.{q,k,v,o}_proj,mlp.{gate,up,down}_proj}",
             "visual.blocks.#.{attn.{qkv,proj},mlp.{linear_fc1,linear_fc2}}"),
    keep=(
        *outer("musubi-tuner, SDNQ", input="x_embedder.{proj1,proj2}", time="t_embedder1.mlp.{0,2}",
               output="final_layer2.linear"),
        Keep("visual.merger.{linear_fc1,linear_fc2}", "projection of the picture, sensitive", "SDNQ"),
        Keep("{language_model.embed_tokens,visual.pos_embed}", "embedding", "musubi-tuner", linear=False),
    ),
    blocks=(Blocks("language_model.layers.#"), Blocks("visual.blocks.#")),
    outer=("language_model.layers.0.self_attn.q_proj.weight", "language_model.norm.weight",
           "final_layer2.linear.weight"),
)

KANDINSKY5 = Family(
    "kandinsky5", "Kandinsky 5", ("Kandinsky5", "Kandinsky5Image"),
    needs=keys("visual_transformer_blocks.0.cross_attention.key_norm.weight", "visual_embeddings.in_layer.bias"),
    linears=("{text,visual}_transformer_blocks.#.self_attention.{to_query,to_key,to_value,out_layer}",
             "visual_transformer_blocks.#.cross_attention.{to_query,to_key,to_value,out_layer}",
             "{text,visual}_transformer_blocks.#.{feed_forward.{in_layer,out_layer},{text,visual}_modulation.out_layer}"),
    keep=outer("ComfyUI-mixed-quantizer", input="visual_embeddings.in_layer",
               text="{text_embeddings,pooled_text_embeddings}.in_layer", time="time_embeddings.{in_layer,out_layer}",
               output="out_layer.{modulation.out_layer,out_layer}"),
    blocks=(Blocks("text_transformer_blocks.#"), Blocks("visual_transformer_blocks.#")),
    outer=("visual_embeddings.in_layer.weight", "text_embeddings.in_layer.weight", "time_embeddings.in_layer.weight",
           "text_transformer_blocks.0.self_attention.to_query.weight", "out_layer.out_layer.weight"),
    encoders=(encoder("qwen25_7b", "qwen25_vl"),
              encoder("clip_l", "", "ComfyUI applies no FP8 scales in CLIP text encoders")),
)
