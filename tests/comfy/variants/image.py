"""Transformers that make pictures."""

from typing import Any

import torch

from .variant import Variant, in_core, scale_norms, tencent
from .video import hunyuan_video, kandinsky


def sd3(depth: int, side: int, **more: Any) -> dict[str, Any]:
    return {"in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": depth, "input_size": None,
            "adm_in_channels": 2048, "num_patches": side * side, "pos_embed_max_size": side,
            "pos_embed_scaling_factor": None,
            "context_embedder_config": {"target": "torch.nn.Linear",
                                        "params": {"in_features": 4096, "out_features": 64 * depth}},
            "x_block_self_attn_layers": []} | more


def flux(depth: int = 19, single: int = 38, into: int = 16, context: int = 4096, **more: Any) -> dict[str, Any]:
    return {"image_model": "flux", "axes_dim": [16, 56, 56], "num_heads": 24, "mlp_ratio": 4.0, "theta": 10000,
            "out_channels": 16, "qkv_bias": True, "txt_ids_dims": [], "in_channels": into, "hidden_size": 3072,
            "context_in_dim": context, "patch_size": 2, "vec_in_dim": 768, "depth": depth,
            "depth_single_blocks": single,
            "guidance_embed": True, "yak_mlp": False, "txt_norm": False} | more


def flux2(hidden: int, depth: int, single: int, context: int, guidance: bool) -> dict[str, Any]:
    return {"image_model": "flux2", "axes_dim": [32, 32, 32, 32], "num_heads": hidden // 128, "mlp_ratio": 3.0,
            "theta": 2000,
            "out_channels": 128, "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False,
            "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3], "in_channels": 128,
            "hidden_size": hidden, "context_in_dim": context, "patch_size": 1, "vec_in_dim": None, "depth": depth,
            "depth_single_blocks": single, "guidance_embed": guidance, "yak_mlp": False, "txt_norm": False}


def chroma(**more: Any) -> dict[str, Any]:
    return {"image_model": "chroma", "axes_dim": [16, 56, 56], "num_heads": 24, "mlp_ratio": 4.0, "theta": 10000,
            "qkv_bias": True, "txt_ids_dims": [], "hidden_size": 3072, "context_in_dim": 4096, "patch_size": 2,
            "vec_in_dim": None, "depth": 19, "depth_single_blocks": 38, "in_channels": 64, "out_channels": 64,
            "in_dim": 64,
            "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5} | more


def radiance(head: str, **more: Any) -> dict[str, Any]:
    return chroma(image_model="chroma_radiance", in_channels=3, out_channels=3, patch_size=16, nerf_hidden_size=64,
                  nerf_mlp_ratio=4, nerf_depth=4, nerf_max_freqs=8, nerf_tile_size=512, nerf_final_head_type=head,
                  nerf_embedder_dtype=torch.float32, use_x0=False, use_sequential_txt_ids=False) | more


def lumina(dim: int, layers: int, cap: int, **more: Any) -> dict[str, Any]:
    return {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": dim, "cap_feat_dim": cap,
            "n_layers": layers,
            "qk_norm": True, "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512],
            "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0} | more


def z_image(**more: Any) -> dict[str, Any]:
    return lumina(3840, 30, 2560, n_heads=30, n_kv_heads=30, axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512],
                  rope_theta=256.0, ffn_dim_multiplier=8.0 / 3.0, z_image_modulation=True, time_scale=1000.0) | more


def qwen(**more: Any) -> dict[str, Any]:
    return {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60} | more


def hydit(model: str, **more: Any) -> dict[str, Any]:
    return {"image_model": model, "depth": 40, "hidden_size": 1408, "mlp_ratio": 4.3637} | more


def pixart(model: str, length: int, latent: int, micro: bool) -> dict[str, Any]:
    return {"image_model": model, "num_heads": 16, "patch_size": 2, "hidden_size": 1152, "in_channels": 4, "depth": 28,
            "model_max_length": length, "input_size": latent, "pe_interpolation": latent // 64,
            "micro_condition": micro}


def hunyuan_image(**more: Any) -> dict[str, Any]:
    return hunyuan_video(64, hidden=3584, patch_size=[1, 1], axes_dim=[64, 64], out_channels=64, vec_in_dim=None,
                         context_in_dim=3584, byt5=True, guidance_embed=False) | more


def pid(**more: Any) -> dict[str, Any]:
    return {"image_model": "pid", "lq_hidden_dim": 512, "lq_interval": 2, "lq_latent_channels": 16,
            "latent_spatial_down_factor": 8} | more


PIT_ADALN = (r"^(core\.pixel_blocks\.\d+)\.(adaLN_modulation_msa|adaLN_modulation_mlp)\.(weight|bias)$",
             ("adaLN_modulation_msa", "adaLN_modulation_mlp"), r"{0}.adaLN_modulation.0.{2}")

HIDREAM = {"image_model": "hidream", "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32],
           "caption_channels": [4096, 4096],
           "max_resolution": [128, 128], "in_channels": 16, "llama_layers": [*range(32), *[31] * 16],
           "num_attention_heads": 20, "num_routed_experts": 4, "num_activated_experts": 2, "num_layers": 16,
           "num_single_layers": 32, "out_channels": 16, "patch_size": 2, "text_emb_dim": 2048}
OMNIGEN2 = {"image_model": "omnigen2", "axes_dim_rope": [40, 40, 40], "axes_lens": [1024, 1664, 1664],
            "ffn_dim_multiplier": None, "hidden_size": 2520, "in_channels": 16, "multiple_of": 256, "norm_eps": 1e-05,
            "num_attention_heads": 21, "num_kv_heads": 7, "num_layers": 32, "num_refiner_layers": 2,
            "out_channels": None,
            "patch_size": 2, "text_feat_dim": 2048, "timestep_scale": 1000.0}
LENS = {"image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 48, "num_attention_heads": 24,
        "enc_hidden_dim": 2880, "multi_layer_encoder_feature": True, "selected_layer_index": (0, 1, 2, 3)}
JOY = {"image_model": "joyimage", "in_channels": 16, "hidden_size": 4096, "patch_size": [1, 2, 2], "num_layers": 40,
       "num_attention_heads": 32, "text_dim": 4096}
KREA2 = {"image_model": "krea2", "features": 6144, "channels": 16, "patch": 2, "layers": 28, "heads": 48, "kvheads": 12,
         "txtlayers": 12, "txtdim": 2560}

IMAGE = [
    Variant("sd3-medium", "SD3", sd3(24, 192)),
    Variant("sd3.5-medium", "SD3", sd3(24, 384, qk_norm="rms", x_block_self_attn_layers=list(range(13)))),
    Variant("sd3.5-large", "SD3", sd3(38, 192, qk_norm="rms")),
    Variant("auraflow-0.3", "AuraFlow", {"max_seq": 9216, "cond_seq_dim": 2048, "n_double_layers": 4, "n_layers": 36}),
    Variant("auraflow-0.1", "AuraFlow", {"max_seq": 4096, "cond_seq_dim": 2048, "n_double_layers": 4, "n_layers": 36}),
    Variant("pixart-alpha-1024", "PixArtAlpha", pixart("pixart_alpha", 120, 128, True)),
    Variant("pixart-sigma-1024", "PixArtSigma", pixart("pixart_sigma", 300, 128, False)),
    Variant("pixart-sigma-512", "PixArtSigma", pixart("pixart_sigma", 300, 64, False)),
    Variant("hunyuan-dit-1.2", "HunyuanDiT", hydit("hydit")),
    Variant("hunyuan-dit-1.1", "HunyuanDiT1", hydit("hydit1", size_cond=True, use_style_cond=True)),
    Variant("flux1-dev", "Flux", flux(), rename=scale_norms),
    Variant("flux1-canny-dev", "Flux", flux(into=32), rename=scale_norms),
    Variant("flux1-fill-dev", "FluxInpaint", flux(into=96), rename=scale_norms),
    Variant("flux1-schnell", "FluxSchnell", flux(guidance_embed=False), rename=scale_norms),
    Variant("ovis-image-7b", "FluxSchnell", flux(6, 27, context=2048, vec_in_dim=None, guidance_embed=False,
                                                 yak_mlp=True,
                                                 txt_norm=True, txt_ids_dims=[1, 2]), rename=scale_norms),
    Variant("longcat-image", "LongCatImage", flux(10, 20, context=3584, vec_in_dim=None, guidance_embed=False,
                                                  txt_ids_dims=[1, 2])),
    Variant("flux2-dev", "Flux2", flux2(6144, 8, 48, 15360, True), rename=scale_norms),
    Variant("flux2-klein-4b", "Flux2", flux2(3072, 5, 20, 7680, False), rename=scale_norms),
    Variant("flux2-klein-9b", "Flux2", flux2(4096, 8, 24, 12288, False), rename=scale_norms),
    Variant("chroma1", "Chroma", chroma(), rename=scale_norms),
    Variant("chroma1-radiance", "ChromaRadiance", radiance("conv"), rename=scale_norms),
    Variant("chroma1-radiance-x0", "ChromaRadiance", radiance("conv", use_x0=True), markers=("__x0__",),
            rename=scale_norms),
    Variant("lumina2", "Lumina2", lumina(2304, 26, 2304)),
    Variant("newbie-image", "Lumina2", lumina(2304, 36, 2560, clip_text_dim=1024)),
    Variant("z-image", "ZImage", z_image(pad_tokens_multiple=32)),
    Variant("z-image-omni", "ZImage", z_image(pad_tokens_multiple=32, siglip_feat_dim=1152)),
    Variant("z-image-pixel", "ZImagePixelSpace", z_image(
        image_model="zimage_pixel", pad_tokens_multiple=32, patch_size=32, in_channels=3, decoder_in_channels=3072,
        decoder_hidden_size=3840, decoder_num_res_blocks=4, decoder_max_freqs=8)),
    Variant("pixeldit-t2i", "PixelDiTT2I", {"image_model": "pixeldit_t2i"}, rename=in_core, merge=PIT_ADALN),
    Variant("pid-flux", "PiD", pid(), rename=in_core, merge=PIT_ADALN),
    Variant("pid-flux2", "PiD", pid(lq_latent_channels=128, latent_spatial_down_factor=16), rename=in_core,
            merge=PIT_ADALN),
    Variant("hidream-i1", "HiDream", HIDREAM),
    Variant("hidream-o1", "HiDreamO1", {"image_model": "hidream_o1"}),
    Variant("omnigen2", "Omnigen2", OMNIGEN2),
    Variant("boogu-image", "Boogu", {"image_model": "boogu", "hidden_size": 3360, "num_layers": 32,
                                     "num_refiner_layers": 2,
                                     "num_double_stream_layers": 8, "instruction_feat_dim": 4096}),
    Variant("qwen-image", "QwenImage", qwen()),
    Variant("qwen-image-edit-2511", "QwenImage", qwen(default_ref_method="index_timestep_zero"),
            markers=("__index_timestep_zero__",)),
    Variant("qwen-image-layered", "QwenImage", qwen(use_additional_t_cond=True, default_ref_method="negative_index")),
    Variant("mage-flow", "MageFlow", {"image_model": "mage_flow", "in_channels": 128, "num_layers": 12}),
    Variant("lens", "Lens", LENS),
    Variant("ideogram4", "Ideogram4", {"image_model": "ideogram4", "in_channels": 128, "num_layers": 34}),
    Variant("krea2", "Krea2", KREA2),
    Variant("ernie-image", "ErnieImage", {"image_model": "ernie"}),
    Variant("joyimage-edit", "JoyImage", JOY),
    Variant("kandinsky5-image-lite", "Kandinsky5Image", kandinsky(2560, 512, 10240, 64, 2, 50, (32, 48, 48),
                                                                  rope_scale_factor=(1.0, 1.0, 1.0))),
    Variant("hunyuan-image-2.1", "HunyuanImage21", hunyuan_image(), rename=tencent),
    Variant("hunyuan-image-2.1-distilled", "HunyuanImage21", hunyuan_image(guidance_embed=True, meanflow=True),
            rename=tencent),
    Variant("hunyuan-image-2.1-refiner", "HunyuanImage21Refiner", hunyuan_image(
        in_channels=128, hidden_size=3328, num_heads=26, patch_size=[1, 1, 1], axes_dim=[16, 56, 56], byt5=False,
        guidance_embed=True), rename=tencent,
        note="width assumed"),
]
