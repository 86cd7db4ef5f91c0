"""Sound and 3-D, and what is in ComfyUI's list without being a diffusion model."""

from typing import Any

from .variant import Shapes, Variant, scale_norms

ACE = {"audio_model": "ace", "attention_head_dim": 128, "in_channels": 8, "inner_dim": 2560, "max_height": 16,
       "max_position": 32768, "max_width": 32768, "mlp_ratio": 2.5, "num_attention_heads": 20, "num_layers": 24,
       "out_channels": 8, "patch_size": [16, 1], "rope_theta": 1000000.0, "speaker_embedding_dim": 512,
       "text_embedding_dim": 768, "ssl_encoder_depths": [8, 8], "ssl_latent_dims": [1024, 768],
       "ssl_names": ["mert", "m-hubert"], "lyric_encoder_vocab_size": 6693, "lyric_hidden_size": 1024}


def ace15(hidden: int = 2048, intermediate: int = 6144, layers: int = 24) -> dict[str, Any]:
    return {"audio_model": "ace1.5", "hidden_size": hidden, "intermediate_size": intermediate,
            "num_heads": hidden // 128,
            "encoder_hidden_size": 2048, "encoder_num_heads": 16, "encoder_intermediate_size": 6144,
            "num_dit_layers": layers}


def stable_audio(**more: Any) -> dict[str, Any]:
    return {"audio_model": "dit1.0", "global_cond_dim": 1536, "project_cond_tokens": False, "embed_dim": 1536,
            "timestep_features_type": "learned", "io_channels": 64, "input_concat_dim": 0, "depth": 24} | more


def seconds(which: str, into: int) -> Shapes:
    """The conditioner for a duration, which lies beside the diffusion model."""
    base = f"conditioner.conditioners.seconds_{which}.embedder.embedding"
    learned = {f"{base}.0.weights": (128,)} if into == 257 else {}
    return learned | {f"{base}.1.weight": (768, into), f"{base}.1.bias": (768,)}


def hunyuan3d(depth: int, single: int, guidance: bool = False) -> dict[str, Any]:
    return {"image_model": "hunyuan3d2", "in_channels": 64, "context_in_dim": 1536, "hidden_size": 1024,
            "mlp_ratio": 4.0,
            "num_heads": 16, "depth": depth, "depth_single_blocks": single, "qkv_bias": True,
            "guidance_embed": guidance}


HUNYUAN3D_21 = {"image_model": "hunyuan3d2_1", "in_channels": 64, "context_dim": 1024, "hidden_size": 2048,
                "mlp_ratio": 4.0,
                "num_heads": 16, "depth": 21, "qkv_bias": False, "guidance_cond_proj_dim": None}
TRELLIS2 = {"image_model": "trellis2", "resolution": 64, "init_txt_model": True, "txt_only": False}
DA3 = {"image_model": "DepthAnything3", "backbone_name": "vitl", "alt_start": -1, "rope_start": -1, "qknorm_start": -1,
       "cat_token": False, "head_dim_in": 1024, "head_features": 256, "head_out_channels": [256, 512, 1024, 1024],
       "head_type": "dpt", "head_output_dim": 1, "head_use_sky_head": True, "out_layers": [4, 11, 17, 23],
       "has_cam_enc": False, "has_cam_dec": False}

OTHER = [
    Variant("stable-audio-open-1.0", "StableAudio", stable_audio(), beside=seconds("start", 257) | seconds("total",
                                                                                                           257)),
    Variant("stable-audio-3", "StableAudio3", stable_audio(
        global_cond_dim=768, io_channels=256, local_add_cond_dim=257, global_cond_shared_embed=True,
        global_cond_type="adaLN",
        norm_type="rms_norm", num_heads=24, attn_kwargs={"qk_norm": "rms", "differential": False},
        timestep_features_type="expo", num_memory_tokens=64), beside=seconds("total", 256),
        note="depth and width assumed"),
    Variant("ace-step-1", "ACEStep", ACE),
    Variant("ace-step-1.5", "ACEStep15", ace15(), device="cpu"),
    Variant("ace-step-1.5-xl", "ACEStep15", ace15(2560, 9728, 32), device="cpu", note="width and depth assumed"),
    Variant("minimax-music-3", "MiniMaxMusic3", {"audio_model": "minimax_music3"}),
    Variant("hunyuan3d-2", "Hunyuan3Dv2", hunyuan3d(16, 32), rename=scale_norms),
    Variant("hunyuan3d-2-turbo", "Hunyuan3Dv2", hunyuan3d(16, 32, True), rename=scale_norms),
    Variant("hunyuan3d-2-mini", "Hunyuan3Dv2mini", hunyuan3d(8, 16), rename=scale_norms),
    Variant("hunyuan3d-2.1", "Hunyuan3Dv2_1", HUNYUAN3D_21),
    Variant("triposplat", "TripoSplat", {"image_model": "triposplat"}),
    Variant("trellis2", "Trellis2", TRELLIS2),
]

SPLIT = "q, k and v as ComfyUI splits them, without the text encoder"
NOT_DIFFUSION = [
    Variant("depth-anything-3-large", "DepthAnything3", DA3),
    Variant("rt-detr-v4", "RT_DETR_v4", {"image_model": "RT_DETR_v4", "enc_h": 256}),
    Variant("sam3", "SAM3", {"image_model": "SAM3"}, note=SPLIT),
    Variant("sam3.1", "SAM31", {"image_model": "SAM31"}, note=SPLIT),
]
