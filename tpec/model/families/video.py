"""Video models, and the image models that are built as such (Hunyuan Image)."""

from .family import Blocks, Encoder, Family, Keep, encoder, keys, outer

_T5 = encoder("t5xxl", "t5xxl")
_CLIP = "ComfyUI applies no FP8 scales in CLIP text encoders"
_ADALN = "{{,audio_}{,prompt_},av_ca_{video,audio}_scale_shift_,av_ca_{a2v,v2a}_gate_}adaln_single"

# The published files' names come first; ComfyUI renames them on load to the ones behind.
HUNYUAN_VIDEO = Family(
    "hunyuan_video", "Hunyuan Video",
    ("HunyuanVideo", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V", "HunyuanVideo15", "HunyuanVideo15_SR_Distilled",
     "HunyuanImage21", "HunyuanImage21Refiner"),
    needs=keys("txt_in.individual_token_refiner.blocks.0.norm1.weight", "img_in.proj.weight"),
    linears=("double_blocks.#.{img,txt}_{attn_qkv,attn_proj,attn.qkv,attn.proj,mlp.{fc1,fc2,0,2},mod.{linear,lin}}",
             "single_blocks.#.{linear1,linear2,modulation.{linear,lin}}"),
    keep=(
        *outer("diffusers, musubi-tuner",
               text="{txt_in.{input_embedder,{t,c}_embedder.{mlp.{0,2},linear_1,linear_2,in_layer,out_layer}},"
               "byt5_in.{fc1,fc2,fc3},vision_in.proj.{1,3}}",
               time="{time_in,time_r_in,guidance_in,vector_in}.{mlp.{0,2},in_layer,out_layer}",
               output="final_layer.{linear,adaLN_modulation.1}"),
        Keep("txt_in.individual_token_refiner.blocks.#.{adaLN_modulation.1,self_attn.{qkv,proj},mlp.{fc1,fc2,0,2}}",
             "refiner of the text, small", "diffusers, musubi-tuner"),
        Keep("cond_type_embedding", "plain torch embedding, ComfyUI applies no scale there", linear=False),
    ),
    blocks=(Blocks("double_blocks.#"), Blocks("single_blocks.#"), Blocks("txt_in.individual_token_refiner.blocks.#")),
    outer=("txt_in.input_embedder.weight", "time_in.{mlp.0,in_layer}.weight",
           "double_blocks.0.img_attn{_qkv,.qkv}.weight", "final_layer.linear.weight",
           "final_layer.adaLN_modulation.1.weight"),
    encoders=(encoder("llama", "llama"), encoder("qwen25_7b", "qwen25_vl"), encoder("clip_l", "", _CLIP),
              encoder("byt5_small", "", "ComfyUI applies no FP8 scales in ByT5")),
    variants=(("Hunyuan Video 1.5", "vision_in.proj.0.weight"), ("Hunyuan Image 2.1", "byt5_in.fc1.weight")),
)

_WAN_LAYERS = "{self_attn.{q,k,v,o},cross_attn.{q,k,v,o},ffn.{0,2}}"

WAN = Family(
    "wan", "Wan",
    ("WAN21_T2V", "WAN21_I2V", "WAN21_CausalAR_T2V", "WAN21_FunControl2V", "WAN21_Camera", "WAN22_Camera", "WAN21_Vace",
     "WAN21_HuMo", "WAN22_S2V", "WAN22_Animate", "WAN_Animate2", "WAN22_T2V", "WAN21_FlowRVS", "WAN21_SCAIL",
     "WAN21_SCAIL2", "WAN22_WanDancer"),
    needs=keys("head.modulation", "head.head.weight", "blocks.0.ffn.0.weight"),
    linears=(f"{{blocks,vace_blocks}}.#.{_WAN_LAYERS}",
             "blocks.#.cross_attn.{k_img,v_img}",
             "vace_blocks.#.{before_proj,after_proj}",
             "blocks.#.audio_cross_attn_wrapper.audio_cross_attn.{q,k,v,o}",
             "face_adapter.fuser_blocks.#.{linear1_kv,linear1_q,linear2}",
             "{audio_injector,music_injector}.injector.#.{q,k,v,o}",
             "audio_injector.injector_adain_layers.#.linear"),
    keep=(
        *outer("Kijai's published files, convert_to_quant, musubi-tuner",
               text="{text_embedding.{0,2},{img_emb,img_emb_refimage}.proj.{1,3}}",
               time="{time_embedding.{0,2},time_projection.1}", output="{head.head,head_global.head}"),
        Keep("{casual_audio_encoder.encoder.final_linear,audio_proj.audio_proj_glob_{1,2,3}.layer,music_projection,"
             "music_encoder.#.{self_attn.out_proj,linear1,linear2}}", "projection of the sound, sensitive",
             "convert_to_quant"),
        Keep("face_encoder.out_proj", "projection of the face, sensitive", "convert_to_quant"),
        Keep("motion_encoder.**", "no Linears of ComfyUI", linear=False),
        Keep("trainable_cond_mask", "embedding", linear=False),
    ),
    blocks=(Blocks("blocks.#"), Blocks("vace_blocks.#", varies=("before_proj.*",)),
            Blocks("face_adapter.fuser_blocks.#"), Blocks("{audio,music}_injector.injector.#")),
    outer=("patch_embedding.weight", "text_embedding.0.weight", "text_embedding.2.weight", "time_embedding.0.weight",
           "time_projection.1.weight"),
    encoders=(encoder("umt5xxl", "umt5xxl"),),
    variants=(("Wan VACE", "vace_patch_embedding.weight"), ("Wan Fun-Camera", "control_adapter.conv.weight"),
              ("Wan 2.2 S2V", "casual_audio_encoder.encoder.final_linear.weight"),
              ("HuMo", "audio_proj.audio_proj_glob_1.layer.bias"),
              ("Wan 2.2 Animate", "face_adapter.fuser_blocks.0.k_norm.weight"),
              ("SCAIL 2", "patch_embedding_mask.weight"), ("SCAIL", "patch_embedding_pose.weight"),
              ("WanDancer", "patch_embedding_global.weight"), ("Wan with a first frame", "img_emb.proj.0.bias")),
)

_ATTENTION = "to_{q,k,v,out.0,gate_logits}"

LTX = Family(
    "ltx", "LTX-Video", ("LTXV", "LTXAV"),
    needs=keys("adaln_single.emb.timestep_embedder.linear_1.bias", "transformer_blocks.0.attn2.to_k.weight"),
    forbids=("pos_embed.proj.bias",),
    linears=(f"transformer_blocks.#.{{attn1,attn2,audio_attn1,audio_attn2,audio_to_video_attn,video_to_audio_attn}}."
             f"{_ATTENTION}",
             "transformer_blocks.#.{ff,audio_ff}.net.{0.proj,2}",
             f"{{audio,video}}_embeddings_connector.transformer_1d_blocks.#.{{attn1.{_ATTENTION},ff.net.{{0.proj,2}}}}"),
    keep=outer("Model-Optimizer, convert_to_quant", input="{patchify_proj,audio_patchify_proj}",
               text="{caption_projection,audio_caption_projection}.{linear_1,linear_2}",
               time=f"{_ADALN}.{{emb.timestep_embedder.linear_{{1,2}},linear}}", output="{proj_out,audio_proj_out}"),
    blocks=(Blocks("transformer_blocks.#"), Blocks("{audio,video}_embeddings_connector.transformer_1d_blocks.#")),
    outer=("patchify_proj.weight", "adaln_single.linear.weight", "proj_out.weight", "scale_shift_table"),
    encoders=(_T5,),
    variants=(("LTX-2", "audio_adaln_single.linear.weight"),),
)

MOCHI = Family(
    "mochi", "Mochi", ("GenmoMochi",),
    needs=keys("t5_yproj.weight", "blocks.0.attn.qkv_x.weight"),
    linears=("blocks.#.{attn.{qkv,proj}_{x,y},mlp_{x,y}.{w1,w2},mod_{x,y}}",),
    keep=outer("diffusers", text="{t5_yproj,t5_y_embedder.{to_kv,to_q,to_out}}", time="t_embedder.mlp.{0,2}",
               output="final_layer.{mod,linear}"),
    # The last block's text branch ends behind its attention.
    blocks=(Blocks("blocks.#", varies=("attn.proj_y.*", "mlp_y.**")),),
    outer=("x_embedder.proj.weight", "t_embedder.mlp.0.weight", "final_layer.linear.weight"),
    encoders=(_T5,),
)

COSMOS1 = Family(
    "cosmos1", "Cosmos 1", ("CosmosT2V", "CosmosI2V"),
    needs=keys("blocks.block0.blocks.0.block.attn.to_q.0.weight", "x_embedder.proj.1.weight"),
    linears=("blocks.block#.blocks.#.{block.attn.to_{q,k,v,out}.0,block.{layer1,layer2},adaLN_modulation.{1,2}}",),
    keep=outer("SDNQ, diffusers", input="x_embedder.proj.1", time="t_embedder.#.{linear_1,linear_2}",
               output="final_layer.{linear,adaLN_modulation.{1,2}}"),
    blocks=(Blocks("blocks.block#"),),
    outer=("t_embedder.1.linear_1.weight", "final_layer.linear.weight", "final_layer.adaLN_modulation.1.weight"),
    encoders=(_T5,),
)

_PREDICT2_LINEARS = ("blocks.#.{self_attn,cross_attn}.{q,k,v,output}_proj",
                     "blocks.#.{mlp.{layer1,layer2},adaln_modulation_{self_attn,cross_attn,mlp}.{1,2}}")
_PREDICT2_OUTER = ("x_embedder.proj.1.weight", "t_embedder.1.linear_1.weight", "final_layer.linear.weight")
_PREDICT2_KEEP = outer("convert_to_quant, diffusers", input="x_embedder.proj.1",
                       time="t_embedder.#.{linear_1,linear_2}", output="final_layer.{linear,adaln_modulation.{1,2}}")

ANIMA = Family(
    "anima", "Anima", ("Anima",),
    needs=keys("blocks.0.mlp.layer1.weight", "llm_adapter.blocks.0.cross_attn.q_proj.weight"),
    linears=_PREDICT2_LINEARS,
    keep=(
        *_PREDICT2_KEEP,
        Keep("llm_adapter.{out_proj,blocks.#.{{self_attn,cross_attn}.{q,k,v,o}_proj,mlp.{0,2}}}",
             "adapter of the text, sensitive", "convert_to_quant, comfy-quants"),
        Keep("llm_adapter.embed", "embedding", linear=False),
    ),
    blocks=(Blocks("blocks.#"), Blocks("llm_adapter.blocks.#")),
    outer=_PREDICT2_OUTER,
    encoders=(encoder("qwen3_06b", "qwen3", prefix="cond_stage_model."),),
    notes="its adapter of the text is 5 % of the model (convert_to_quant and comfy-quants keep it)",
)

COSMOS_PREDICT2 = Family(
    "cosmos_predict2", "Cosmos Predict2", ("CosmosT2IPredict2", "CosmosI2VPredict2"),
    needs=keys("blocks.0.mlp.layer1.weight", "blocks.0.self_attn.q_proj.weight"),
    linears=_PREDICT2_LINEARS,
    keep=_PREDICT2_KEEP,
    blocks=(Blocks("blocks.#"),),
    outer=_PREDICT2_OUTER,
    encoders=(encoder("t5xxl", "t5xxl", prefix="cond_stage_model."),),
)

COGVIDEOX = Family(
    "cogvideox", "CogVideoX", ("CogVideoX_T2V", "CogVideoX_I2V", "CogVideoX_Inpaint"),
    needs=keys("blocks.0.norm1.linear.weight", "blocks.0.ff_proj.weight"),
    linears=("blocks.#.{q,k,v,attn_out,ff_proj,ff_out,norm1.linear,norm2.linear}",),
    keep=outer("diffusers", input="patch_embed.proj", text="patch_embed.text_proj",
               time="{time,ofs}_embedding_linear_{1,2}", output="{norm_out.linear,proj_out}"),
    blocks=(Blocks("blocks.#"),),
    outer=("patch_embed.proj.weight", "patch_embed.text_proj.weight", "time_embedding_linear_1.weight",
           "norm_out.linear.weight", "proj_out.weight"),
    encoders=(Encoder("t5xxl", "text_encoders.", "", "ComfyUI applies no FP8 scales to the T5 inside CogVideoX "
                      "checkpoints, only in a file of its own"),),
)

MINIMAX_H3 = Family(
    "minimax_h3", "MiniMax H3", ("MiniMaxH3",),
    needs=keys("video_patch_proj.weight", "audio_patch_proj.weight"),
    linears=("blocks.#.{attn.{qkv_proj,out_proj},mlp.{fc1,fc2},adaln_proj.linear}",),
    keep=(
        *outer("convert_to_quant, Comfy-Org's published file", input="{video_patch_proj,audio_patch_proj}",
               text="condition_proj", time="time_embedder.{proj_in,proj_out}",
               output="final_layer.{adaln_proj.linear,video_out,audio_out}"),
        Keep("token_refiner.blocks.#.{attn.{qkv_proj,out_proj},mlp.{fc1,fc2}}", "refiner of the text, small",
             "convert_to_quant, Comfy-Org's published file"),
    ),
    blocks=(Blocks("blocks.#"), Blocks("token_refiner.blocks.#")),
    outer=("condition_proj.weight", "{time_embedder.proj_in.weight,adaln_t_table}", "final_layer.video_out.weight",
           "final_layer.audio_out.weight"),
    encoders=(encoder("qwen3vl_32b", "qwen3_vl"),),
)

SEEDVR2 = Family(
    "seedvr2", "SeedVR2", ("SeedVR2",),
    needs=keys("blocks.31.{mlp.all.proj_in_gate,mlp.vid.proj_out}.weight", "vid_in.proj.weight"),
    linears=("blocks.#.{attn.{proj_qkv,proj_out}.{vid,txt,all},mlp.{vid,txt,all}.{proj_in_gate,proj_in,proj_out}}",),
    keep=outer("SDNQ", input="vid_in.proj", text="txt_in", time="emb_in.{proj_in,proj_hid,proj_out}",
               output="vid_out.proj"),
    # The first blocks have weights of their own for text and video, the later ones share them.
    blocks=(Blocks("blocks.#", varies=("**.{vid,txt,all}.**",)),),
    outer=("txt_in.weight", "emb_in.proj_in.weight", "vid_out.proj.weight"),
)
