"""Models of sound and of three-dimensional shapes."""

from .family import Blocks, Encoder, Family, Keep, encoder, keys, outer
from .image import FLUX_BLOCKS, FLUX_LINEARS, MODULATION_LINEARS

_T5 = "ComfyUI applies no FP8 scales in this T5"
_DIFFUSERS = "diffusers"

STABLE_AUDIO = Family(
    "stable_audio", "Stable Audio", ("StableAudio", "StableAudio3"),
    needs=keys("transformer.rotary_pos_emb.inv_freq", "transformer.project_in.weight"),
    linears=("transformer.layers.#.{self_attn.{to_qkv,to_out},cross_attn.{to_q,to_kv,to_out},ff.ff.{0.proj,2}}",
             "transformer.layers.#.to_local_embed.{0,2}"),
    keep=(
        *outer(_DIFFUSERS, input="transformer.project_in", text="to_cond_embed.{0,2}",
               time="{to_timestep_embed.{0,2},to_global_embed.{0,2},transformer.global_cond_embedder.{0,2}}",
               output="transformer.project_out"),
        Keep("timestep_features", "frequencies, no Linear", linear=False),
    ),
    blocks=(Blocks("transformer.layers.#"),),
    outer=("preprocess_conv.weight", "postprocess_conv.weight", "to_timestep_embed.0.weight", "to_cond_embed.0.weight",
           "transformer.project_out.weight"),
    encoders=(encoder("t5base", "", _T5), encoder("t5gemma", "", "ComfyUI applies no FP8 scales in T5-Gemma")),
    variants=(("Stable Audio 3", "transformer.global_cond_embedder.0.weight"),),
)

MINIMAX_MUSIC3 = Family(
    "minimax_music3", "MiniMax Music 3", ("MiniMaxMusic3",),
    needs=keys("cond_layer_logits", "latent_conditioners.0.weight",
               "diffusion_transformer.transformer.layers.0.self_attn.to_qkv.weight"),
    linears=("diffusion_transformer.transformer.layers.#.{self_attn.{to_qkv,to_out},ff.ff.{0.proj,2}}",),
    keep=(
        *outer(_DIFFUSERS, input="diffusion_transformer.transformer.project_in",
               time="diffusion_transformer.to_timestep_embed.{0,2}",
               output="diffusion_transformer.transformer.project_out"),
        Keep("diffusion_transformer.timestep_features", "frequencies, no Linear", linear=False),
    ),
    blocks=(Blocks("diffusion_transformer.transformer.layers.#"),),
    outer=("diffusion_transformer.transformer.project_in.weight",
           "diffusion_transformer.transformer.project_out.weight", "diffusion_transformer.to_timestep_embed.0.weight"),
    encoders=(Encoder("qwen3_8b", "cond_stage_model.", "", "ComfyUI applies no FP8 scales to the language model inside "
                      "MiniMax Music checkpoints, only in a file of its own"),),
)

ACE_STEP = Family(
    "ace_step", "ACE-Step", ("ACEStep",),
    needs=keys("genre_embedder.weight", "transformer_blocks.0.attn.to_q.weight"),
    linears=("transformer_blocks.#.attn.to_{q,k,v,out.0}",
             "transformer_blocks.#.cross_attn.{to_{q,k,v,out.0,add_out},add_{q,k,v}_proj}",
             "lyric_encoder.encoders.#.{self_attn.linear_{q,k,v,out,pos},feed_forward.{w_1,w_2}}",
             "projectors.#.{0,2,4}"),
    keep=(
        *outer("comfyui-starnodes-modelconverter",
               text="{speaker_embedder,genre_embedder,lyric_encoder.embed.out.0,lyric_proj}",
               time="{timestep_embedder.{linear_1,linear_2},t_block.1}", output="final_layer.linear"),
        Keep("lyric_embs", "embedding", linear=False),
    ),
    blocks=(Blocks("transformer_blocks.#"), Blocks("lyric_encoder.encoders.#")),
    outer=("speaker_embedder.weight", "lyric_proj.weight", "timestep_embedder.linear_1.weight", "t_block.1.weight",
           "final_layer.linear.weight", "lyric_encoder.encoders.0.feed_forward.w_1.weight"),
    encoders=(encoder("umt5base", "", _T5),),
)

_ACE_LAYER = "{self_attn.{q,k,v,o}_proj,mlp.{gate,up,down}_proj}"

ACE_STEP15 = Family(
    "ace_step15", "ACE-Step 1.5", ("ACEStep15",),
    needs=keys("encoder.lyric_encoder.layers.0.input_layernorm.weight", "decoder.layers.0.self_attn.q_proj.weight"),
    linears=(f"decoder.layers.#.{{{_ACE_LAYER[1:-1]},cross_attn.{{q,k,v,o}}_proj}}",
             f"{{encoder.{{lyric,timbre}}_encoder,tokenizer.attention_pooler,detokenizer}}.layers.#.{_ACE_LAYER}"),
    keep=outer("no list published",
               text="{encoder.text_projector,encoder.{lyric,timbre}_encoder.embed_tokens,decoder.condition_embedder}",
               input="{tokenizer.{audio_acoustic_proj,attention_pooler.embed_tokens,quantizer.{project_in,project_out}},"
               "detokenizer.embed_tokens}",
               time="decoder.{time_embed,time_embed_r}.{linear_1,linear_2,time_proj}", output="detokenizer.proj_out"),
    blocks=(Blocks("decoder.layers.#"),
            Blocks("{encoder.{lyric,timbre}_encoder,tokenizer.attention_pooler,detokenizer}.layers.#")),
    outer=("decoder.time_embed.linear_1.weight", "decoder.condition_embedder.weight", "encoder.text_projector.weight",
           "decoder.proj_out.1.weight"),
    encoders=(encoder("qwen3_2b", "qwen3"), encoder("qwen3_4b", "qwen3"),
              encoder("qwen3_06b", "", "ComfyUI applies no FP8 scales in ACE-Step's 0.6B embedding model")),
)

HUNYUAN3D = Family(
    "hunyuan3d", "Hunyuan3D 2", ("Hunyuan3Dv2", "Hunyuan3Dv2mini"),
    needs=keys("latent_in.weight", "double_blocks.0.img_mod.lin.weight"),
    linears=(*FLUX_LINEARS, *MODULATION_LINEARS),
    keep=outer("convert_to_quant", input="latent_in", text="cond_in",
               time="{time_in,guidance_in}.{in_layer,out_layer}", output="final_layer.{linear,adaLN_modulation.1}"),
    blocks=FLUX_BLOCKS,
    outer=("cond_in.weight", "time_in.{in,out}_layer.weight", "single_blocks.0.linear1.weight",
           "final_layer.linear.weight", "final_layer.adaLN_modulation.1.weight"),
)

HUNYUAN3D21 = Family(
    "hunyuan3d21", "Hunyuan3D 2.1", ("Hunyuan3Dv2_1",),
    needs=keys("t_embedder.mlp.2.weight", "blocks.0.attn1.k_norm.weight"),
    linears=("blocks.#.{{attn1,attn2}.{to_{q,k,v},out_proj},mlp.{fc1,fc2},skip_linear}",
             "blocks.#.moe.{experts.#,shared_experts}.net.{0.proj,2}"),
    keep=(
        *outer("ComfyUI's code reads the dtype of t_embedder", input="x_embedder", time="t_embedder.mlp.{0,2}",
               output="final_layer.linear"),
        Keep("blocks.#.moe.gate", "router of the experts, no Linear", linear=False),
    ),
    # Half of the blocks have a skip connection, the last ones a mixture of experts in place of the feed-forward.
    blocks=(Blocks("blocks.#", varies=("mlp.**", "skip_linear.*", "skip_norm.*", "moe.**")),),
    outer=("x_embedder.weight", "final_layer.linear.weight"),
)

TRIPOSPLAT = Family(
    "triposplat", "TripoSplat", ("TripoSplat",),
    needs=keys("cam_out_layer.weight", "repo_layers.0.final_map.weight"),
    linears=("{blocks,noise_refiner,context_refiner}.#.{attn.{qkv,out},mlp.mlp.{0,2}}",
             "{repo_layers,noise_repo_layers,context_repo_layers}.#.{gate_map,content_map,final_map}"),
    keep=outer("no list published", input="{input_layer,cam_refiner.mlp.{0,2}}", text="{cond_embedder,cond_embedder2}",
               time="t_embedder.mlp.{0,2}", shared="adaLN_modulation.1", output="{out_layer,cam_out_layer}"),
    blocks=(Blocks("blocks.#"), Blocks("{noise_refiner,context_refiner}.#"),
            Blocks("{repo_layers,noise_repo_layers,context_repo_layers}.#")),
    outer=("input_layer.weight", "t_embedder.mlp.0.weight", "cond_embedder.weight", "blocks.0.attn.qkv.weight",
           "out_layer.weight"),
)

_TRELLIS = "{img2shape,img2shape_512,shape2txt,structure_model}"

TRELLIS2 = Family(
    "trellis2", "Trellis 2", ("Trellis2",),
    needs=keys("{img2shape,shape2txt}.t_embedder.mlp.0.weight"),
    linears=(f"{_TRELLIS}.blocks.#.{{self_attn.{{to_qkv,to_out}},mlp.mlp.{{0,2}}}}",
             f"{_TRELLIS}.blocks.#.cross_attn.{{to_q,to_kv,to_out,proj_linear}}"),
    keep=outer("no list published", input=f"{_TRELLIS}.input_layer", time=f"{_TRELLIS}.t_embedder.mlp.{{0,2}}",
               shared=f"{_TRELLIS}.adaLN_modulation.1", output=f"{_TRELLIS}.out_layer"),
    blocks=(Blocks(f"{_TRELLIS}.blocks.#"),),
    outer=("{img2shape,shape2txt}.input_layer.weight", "{img2shape,shape2txt}.blocks.0.self_attn.to_qkv.weight",
           "{img2shape,shape2txt}.out_layer.weight"),
)
