"""Transformers that make videos."""

import json
from typing import Any

from .variant import Variant, tencent


def hunyuan_video(into: int, hidden: int = 3072, **more: Any) -> dict[str, Any]:
    return {"image_model": "hunyuan_video", "in_channels": into, "patch_size": [1, 2, 2], "out_channels": 16,
            "vec_in_dim": 768, "axes_dim": [16, 56, 56], "meanflow": False, "context_in_dim": 4096,
            "hidden_size": hidden,
            "mlp_ratio": 4.0, "num_heads": hidden // 128, "depth": 20, "depth_single_blocks": 40, "theta": 256,
            "qkv_bias": True, "byt5": False, "guidance_embed": True, "use_cond_type_embedding": False,
            "vision_in_dim": None, "meanflow_sum": False} | more


def hunyuan_video15(into: int, **more: Any) -> dict[str, Any]:
    return hunyuan_video(into, hidden=2048, patch_size=[1, 1, 1], out_channels=32, vec_in_dim=None, context_in_dim=3584,
                         depth=54, depth_single_blocks=0, byt5=True, guidance_embed=False, use_cond_type_embedding=True,
                         vision_in_dim=1152, meanflow_sum=True) | more


WAN_SIZES = {"1.3b": (1536, 8960, 30), "5b": (3072, 14336, 30), "14b": (5120, 13824, 40)}


def wan(size: str, kind: str, into: int, out: int = 16, **more: Any) -> dict[str, Any]:
    dim, ffn, layers = WAN_SIZES[size]
    return {"image_model": "wan2.1", "dim": dim, "out_dim": out, "num_heads": dim // 128, "ffn_dim": ffn,
            "num_layers": layers,
            "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True,
            "eps": 1e-6, "in_dim": into, "model_type": kind} | more


def told(**transformer: Any) -> dict[str, str]:
    """File metadata that ComfyUI lays over what it detects."""
    return {"config": json.dumps({"transformer": transformer})}


WAN = [
    Variant("wan2.1-t2v-1.3b", "WAN21_T2V", wan("1.3b", "t2v", 16)),
    Variant("wan2.1-t2v-14b", "WAN21_T2V", wan("14b", "t2v", 16)),
    Variant("wan2.2-i2v-14b", "WAN21_T2V", wan("14b", "t2v", 36)),
    Variant("wan2.2-fun-control-14b", "WAN21_T2V", wan("14b", "t2v", 52, in_dim_ref_conv=16)),
    Variant("wan2.2-ti2v-5b", "WAN22_T2V", wan("5b", "t2v", 48, 48)),
    Variant("wan2.2-fun-control-5b", "WAN22_T2V", wan("5b", "t2v", 100, 48, in_dim_ref_conv=48)),
    Variant("wan2.1-causal-ar-1.3b", "WAN21_CausalAR_T2V", wan("1.3b", "t2v", 16, causal_ar=True),
            metadata=told(causal_ar=True)),
    Variant("wan2.1-i2v-14b", "WAN21_I2V", wan("14b", "i2v", 36)),
    Variant("wan2.1-flf2v-14b", "WAN21_I2V", wan("14b", "i2v", 36, flf_pos_embed_token_number=514)),
    Variant("wan2.1-fun-inpaint-1.3b", "WAN21_I2V", wan("1.3b", "i2v", 36)),
    Variant("wan2.1-fun-control-1.3b", "WAN21_FunControl2V", wan("1.3b", "i2v", 48)),
    Variant("wan2.1-fun-control-14b", "WAN21_FunControl2V", wan("14b", "i2v", 48, in_dim_ref_conv=16)),
    Variant("wan2.1-vace-1.3b", "WAN21_Vace", wan("1.3b", "vace", 16, vace_in_dim=96, vace_layers=15)),
    Variant("wan2.1-vace-14b", "WAN21_Vace", wan("14b", "vace", 16, vace_in_dim=96, vace_layers=8)),
    Variant("wan2.1-fun-camera-1.3b", "WAN21_Camera", wan("1.3b", "camera", 32)),
    Variant("wan2.1-fun-camera-14b", "WAN21_Camera", wan("14b", "camera", 32)),
    Variant("wan2.2-fun-camera-14b", "WAN22_Camera", wan("14b", "camera_2.2", 36)),
    Variant("wan2.2-s2v-14b", "WAN22_S2V", wan("14b", "s2v", 16)),
    Variant("humo-17b", "WAN21_HuMo", wan("14b", "humo", 36)),
    Variant("humo-1.7b", "WAN21_HuMo", wan("1.3b", "humo", 36)),
    Variant("wan2.2-animate-14b", "WAN22_Animate", wan("14b", "animate", 36)),
    Variant("wan-animate2-14b", "WAN_Animate2", wan("14b", "animate2", 36), metadata=told(model_type="animate2")),
    Variant("wan2.1-flow-rvs-1.3b", "WAN21_FlowRVS", wan("1.3b", "flow_rvs", 16), metadata=told(model_type="flow_rvs")),
    Variant("wan2.1-scail-14b", "WAN21_SCAIL", wan("14b", "scail", 20)),
    Variant("wan2.1-scail2-14b", "WAN21_SCAIL2", wan("14b", "scail2", 20)),
    Variant("wan2.2-dancer-14b", "WAN22_WanDancer", wan("14b", "wandancer", 36), merge=(
        r"^(music_encoder.*\.self_attn)\.(q_proj|k_proj|v_proj)\.(weight|bias)$", ("q_proj", "k_proj", "v_proj"),
        r"{0}.in_proj_{2}")),
]


def cosmos(into: int, channels: int) -> dict[str, Any]:
    large = channels != 4096
    scaled = {"extra_h_extrapolation_ratio": 2.0, "extra_w_extrapolation_ratio": 2.0,
              "extra_t_extrapolation_ratio": 2.0}
    return {"image_model": "cosmos", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": into,
            "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": channels,
            "block_config": "FA-CA-MLP",
            "concat_padding_mask": True, "pos_emb_cls": "rope3d", "pos_emb_learnable": False,
            "pos_emb_interpolation": "crop",
            "block_x_format": "THWBD", "affline_emb_norm": True, "use_adaln_lora": True, "adaln_lora_dim": 256,
            "num_blocks": 36 if large else 28, "num_heads": 40 if large else 32, "extra_per_block_abs_pos_emb": True,
            "rope_h_extrapolation_ratio": 2.0 if large else 1.0, "rope_w_extrapolation_ratio": 2.0 if large else 1.0,
            "rope_t_extrapolation_ratio": 2.0,
            "extra_per_block_abs_pos_emb_type": "learnable"} | (scaled if large else {})


def predict2(into: int, channels: int, blocks: int, model: str = "cosmos_predict2", **more: Any) -> dict[str, Any]:
    return {"image_model": model, "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": into,
            "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": channels,
            "concat_padding_mask": True,
            "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
            "pos_emb_interpolation": "crop",
            "min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 256, "num_blocks": blocks,
            "num_heads": 16 if channels == 2048 else 40, "extra_per_block_abs_pos_emb": False,
            "rope_enable_fps_modulation": False} | more


def cogvideo(heads: int, layers: int, into: int, **more: Any) -> dict[str, Any]:
    return {"image_model": "cogvideox", "num_attention_heads": heads, "attention_head_dim": 64, "time_embed_dim": 512,
            "num_layers": layers, "in_channels": into, "patch_size": 2, "text_embed_dim": 4096,
            "use_learned_positional_embeddings": False, "use_rotary_positional_embeddings": True} | more


def kandinsky(model: int, time: int, ff: int, into: int, text: int, visual: int, axes: tuple[int, int, int],
              **more: Any) -> dict[str, Any]:
    return {"image_model": "kandinsky5", "model_dim": model, "axes_dims": axes, "time_dim": time, "ff_dim": ff,
            "visual_embed_dim": into, "num_text_blocks": text, "num_visual_blocks": visual} | more


MOCHI = {"image_model": "mochi_preview", "depth": 48, "patch_size": 2, "num_heads": 24, "hidden_size_x": 3072,
         "hidden_size_y": 1536, "mlp_ratio_x": 4.0, "mlp_ratio_y": 4.0, "learn_sigma": False, "in_channels": 12,
         "qk_norm": True,
         "qkv_bias": False, "out_bias": True, "attn_drop": 0.0, "patch_embed_bias": True, "posenc_preserve_area": True,
         "timestep_mlp_bias": True, "attend_to_padding": False, "timestep_scale": 1000.0, "use_t5": True,
         "t5_feat_dim": 4096,
         "t5_token_length": 256, "rope_theta": 10000.0}
LTX23 = {"caption_proj_before_connector": True, "cross_attention_adaln": True, "apply_gated_attention": True,
         "connector_apply_gated_attention": True, "connector_num_attention_heads": 32, "connector_num_layers": 8,
         "audio_connector_num_attention_heads": 32, "audio_connector_attention_head_dim": 64}


def seedvr(dim: int, heads: int, layers: int, mlp: str, **more: Any) -> dict[str, Any]:
    return {"image_model": "seedvr2", "vid_dim": dim, "heads": heads, "num_layers": layers, "norm_eps": 1e-5,
            "mlp_type": mlp} | more


LARGE_SEEDVR = {"rope_type": "rope3d", "rope_dim": 64}

VIDEO_MODELS = [
    *WAN,
    Variant("hunyuan-video-t2v", "HunyuanVideo", hunyuan_video(16), rename=tencent),
    Variant("hunyuan-video-i2v", "HunyuanVideoI2V", hunyuan_video(33), rename=tencent),
    Variant("skyreels-v1-i2v", "HunyuanVideoSkyreelsI2V", hunyuan_video(32)),
    Variant("hunyuan-video-1.5", "HunyuanVideo15", hunyuan_video15(65), rename=tencent),
    Variant("hunyuan-video-1.5-step-distilled", "HunyuanVideo15", hunyuan_video15(65, meanflow=True), rename=tencent),
    Variant("hunyuan-video-1.5-sr", "HunyuanVideo15_SR_Distilled", hunyuan_video15(98), rename=tencent),
    Variant("ltx-video-2b", "LTXV", {"image_model": "ltxv", "num_layers": 28, "attention_head_dim": 64,
                                     "cross_attention_dim": 2048}),
    Variant("ltx-video-13b", "LTXV", {"image_model": "ltxv", "num_layers": 48, "attention_head_dim": 128,
                                      "cross_attention_dim": 4096}),
    Variant("ltx-2-19b", "LTXAV", {"image_model": "ltxav", "num_layers": 48, "attention_head_dim": 128,
                                   "cross_attention_dim": 4096}),
    Variant("ltx-2.3-22b", "LTXAV", {"image_model": "ltxav", "num_layers": 48, "attention_head_dim": 128,
                                     "cross_attention_dim": 4096} | LTX23, metadata=told(**LTX23),
            note="the connectors' sizes are assumed"),
    Variant("mochi-preview", "GenmoMochi", MOCHI),
    Variant("cosmos1-7b-t2v", "CosmosT2V", cosmos(16, 4096)),
    Variant("cosmos1-14b-t2v", "CosmosT2V", cosmos(16, 5120)),
    Variant("cosmos1-7b-v2v", "CosmosI2V", cosmos(17, 4096)),
    Variant("cosmos1-14b-v2v", "CosmosI2V", cosmos(17, 5120)),
    Variant("cosmos-predict2-2b-t2i", "CosmosT2IPredict2", predict2(16, 2048, 28)),
    Variant("cosmos-predict2-14b-t2i", "CosmosT2IPredict2", predict2(16, 5120, 36)),
    Variant("cosmos-predict2-2b-v2w", "CosmosI2VPredict2", predict2(17, 2048, 28)),
    Variant("cosmos-predict2-14b-v2w", "CosmosI2VPredict2", predict2(17, 5120, 36)),
    Variant("anima", "Anima", predict2(16, 2048, 28, "anima")),
    Variant("cogvideox-2b", "CogVideoX_T2V", cogvideo(30, 30, 16, use_learned_positional_embeddings=True,
                                                      use_rotary_positional_embeddings=False)),
    Variant("cogvideox-5b", "CogVideoX_T2V", cogvideo(48, 42, 16)),
    Variant("cogvideox-5b-i2v", "CogVideoX_I2V", cogvideo(48, 42, 32, use_learned_positional_embeddings=True,
                                                          use_rotary_positional_embeddings=False)),
    Variant("cogvideox-1.5-5b", "CogVideoX_T2V", cogvideo(48, 42, 16, patch_size_t=2)),
    Variant("cogvideox-1.5-5b-i2v", "CogVideoX_I2V", cogvideo(48, 42, 32, patch_size_t=2, ofs_embed_dim=512)),
    Variant("cogvideox-fun-1.5-5b-inpaint", "CogVideoX_Inpaint", cogvideo(48, 42, 48, patch_size_t=2)),
    Variant("kandinsky5-video-lite", "Kandinsky5", kandinsky(1792, 512, 7168, 132, 2, 32, (16, 24, 24))),
    Variant("kandinsky5-video-pro", "Kandinsky5", kandinsky(4096, 1024, 16384, 132, 4, 60, (32, 48, 48))),
    Variant("minimax-h3", "MiniMaxH3", {"image_model": "minimax_h3"}),
    Variant("minimax-h3-curve", "MiniMaxH3", {"image_model": "minimax_h3", "adaln_curve_grid": 1001,
                                              "time_embed_dim": 64},
            note="the size of the table is assumed"),
    Variant("seedvr2-3b", "SeedVR2", seedvr(2560, 20, 32, "swiglu", vid_out_norm=True)),
    Variant("seedvr2-7b", "SeedVR2", seedvr(3072, 24, 36, "normal", mm_layers=36, **LARGE_SEEDVR)),
    Variant("seedvr2-7b-shared", "SeedVR2", seedvr(3072, 24, 36, "swiglu", mm_layers=10, **LARGE_SEEDVR)),
]
