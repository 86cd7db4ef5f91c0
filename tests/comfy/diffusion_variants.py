"""The published diffusion models at their real sizes, as the configurations that ComfyUI's detection returns for them.

Sizes: the models' public configurations, ComfyUI's own class defaults and the constants in its detection. Every entry
is
proved by building it, giving its shapes back to ComfyUI's detection, and building what that says: see
build_inventory.py.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Variant:
    """One published layout: the class that ComfyUI must recognise, how to build it, how its file differs from the
    modules."""

    name: str
    model_class: str
    config: dict[str, Any]
    metadata: dict[str, str] | None = None
    markers: tuple[str, ...] = ()           # empty tensors that only say something: __x0__
    beside: Shapes = field(default_factory=dict)     # tensors outside the diffusion model that detection asks for
    rename: Callable[[str], str] | None = None       # module's name -> the published file's
    merge: tuple[str, tuple[str, ...],
                 str] | None = None   # regex of a merged tensor's parts, their order, the merged name
    device: str = "meta"                    # cpu where a constructor reads values; its weights are never touched
    note: str = ""


def scale_norms(name: str) -> str:
    """The original names of RMS norms in Flux and its kin."""
    return re.sub(r"((?:query|key)_norm|\.norms\.\d+|txt_norm|nerf_.*norm)\.weight$", r"\1.scale", name)


def tencent(name: str) -> str:
    """HunyuanVideo's names in Tencent's own files, the other way round than ComfyUI's renaming on load."""
    name = re.sub(r"^(double_blocks\.\d+\.(?:img|txt)_)mod\.lin\.", r"\1mod.linear.", name)
    name = re.sub(r"^(double_blocks\.\d+\.(?:img|txt))_attn\.(qkv|proj)\.", r"\1_attn_\2.", name)
    name = re.sub(r"^(double_blocks\.\d+\.(?:img|txt))_attn\.norm\.query_norm\.", r"\1_attn_q_norm.", name)
    name = re.sub(r"^(double_blocks\.\d+\.(?:img|txt))_attn\.norm\.key_norm\.", r"\1_attn_k_norm.", name)
    name = re.sub(r"^(double_blocks\.\d+\.(?:img|txt)_mlp)\.0\.", r"\1.fc1.", name)
    name = re.sub(r"^(double_blocks\.\d+\.(?:img|txt)_mlp)\.2\.", r"\1.fc2.", name)
    name = re.sub(r"^(single_blocks\.\d+)\.norm\.query_norm\.", r"\1.q_norm.", name)
    name = re.sub(r"^(single_blocks\.\d+)\.norm\.key_norm\.", r"\1.k_norm.", name)
    name = re.sub(r"^(single_blocks\.\d+)\.modulation\.lin\.", r"\1.modulation.linear.", name)
    name = re.sub(r"^(txt_in\.individual_token_refiner\.blocks\.\d+\.mlp)\.0\.", r"\1.fc1.", name)
    name = re.sub(r"^(txt_in\.individual_token_refiner\.blocks\.\d+\.mlp)\.2\.", r"\1.fc2.", name)
    name = name.replace("txt_in.t_embedder.in_layer.", "txt_in.t_embedder.mlp.0.")
    name = name.replace("txt_in.t_embedder.out_layer.", "txt_in.t_embedder.mlp.2.")
    name = name.replace("txt_in.c_embedder.in_layer.", "txt_in.c_embedder.linear_1.")
    name = name.replace("txt_in.c_embedder.out_layer.", "txt_in.c_embedder.linear_2.")
    name = re.sub(r"^(time_in|guidance_in|time_r_in)\.in_layer\.", r"\1.mlp.0.", name)
    return re.sub(r"^(time_in|guidance_in|time_r_in)\.out_layer\.", r"\1.mlp.2.", name)


def in_core(name: str) -> str:
    """PixelDiT's own files."""
    return name if name.startswith("lq_proj.") else f"core.{name}"


# ---- UNets: Stability's and their relatives' configurations

def unet(channels: int, context: int, into: int, depth: list[int], depth_out: list[int], mult: list[int], middle: int,
         adm: int | None = None, linear: bool = True, blocks: int = 2, **more: Any) -> dict[str, Any]:
    config = {"image_size": 32, "use_checkpoint": False, "use_spatial_transformer": True, "legacy": False,
              "model_channels": channels, "context_dim": context, "in_channels": into, "out_channels": 4,
              "num_res_blocks": [blocks] * len(mult), "transformer_depth": depth, "transformer_depth_output": depth_out,
              "channel_mult": mult, "transformer_depth_middle": middle, "use_linear_in_transformer": linear,
              "adm_in_channels": adm, "use_temporal_resblock": False, "use_temporal_attention": False}
    return config | ({"num_classes": "sequential"} if adm else {}) | more


SD = ([1, 1, 1, 1, 1, 1, 0, 0], [1] * 9 + [0] * 3, [1, 2, 4, 4], 1)
XL = ([0, 0, 2, 2, 10, 10], [0, 0, 0, 2, 2, 2, 10, 10, 10], [1, 2, 4], 10)
VIDEO = {"extra_ff_mix_layer": True, "use_spatial_context": True, "merge_strategy": "learned_with_images",
         "merge_factor": 0.0, "video_kernel_size": [3, 1, 1], "use_temporal_resblock": True,
         "use_temporal_attention": True, "disable_temporal_crossattention": False}

UNETS = [
    Variant("sd15", "SD15", unet(320, 768, 4, *SD, linear=False)),
    Variant("sd15-inpaint", "SD15", unet(320, 768, 9, *SD, linear=False)),
    Variant("sd15-instructpix2pix", "SD15_instructpix2pix", unet(320, 768, 8, *SD, linear=False)),
    Variant("stable-zero123", "Stable_Zero123", unet(320, 768, 8, *SD, linear=False),
            beside={"cc_projection.weight": (768, 772), "cc_projection.bias": (768,)}),
    Variant("sd21", "SD20", unet(320, 1024, 4, *SD)),
    Variant("sd20-inpaint", "SD20", unet(320, 1024, 9, *SD)),
    Variant("sd20-depth", "SD20", unet(320, 1024, 5, *SD)),
    Variant("sd21-unclip-l", "SD21UnclipL", unet(320, 1024, 4, *SD, adm=1536)),
    Variant("sd21-unclip-h", "SD21UnclipH", unet(320, 1024, 4, *SD, adm=2048)),
    Variant("lotus-d", "LotusD", unet(320, 1024, 4, *SD, adm=4)),
    Variant("sd-x4-upscaler", "SD_X4Upscaler", unet(256, 1024, 7, [0, 0] + [1] * 6, [1] * 9 + [0] * 3, [1, 2, 2, 4],
                                                    1)),
    Variant("sdxl-refiner", "SDXLRefiner", unet(384, 1280, 4, [0, 0, 4, 4, 4, 4, 0, 0],
                                                [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0], [1, 2, 4, 4], 4, adm=2560)),
    Variant("sdxl", "SDXL", unet(320, 2048, 4, *XL, adm=2816)),
    Variant("sdxl-inpaint", "SDXL", unet(320, 2048, 9, *XL, adm=2816)),
    Variant("sdxl-instructpix2pix", "SDXL_instructpix2pix", unet(320, 2048, 8, *XL, adm=2816)),
    Variant("ssd-1b", "SSD1B", unet(320, 2048, 4, [0, 0, 2, 2, 4, 4], [0, 0, 0, 1, 1, 2, 10, 4, 4], [1, 2, 4], -1,
                                    adm=2816)),
    Variant("segmind-vega", "Segmind_Vega", unet(320, 2048, 4, [0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2],
                                                 [1, 2, 4], -1, adm=2816)),
    Variant("koala-700m", "KOALA_700M", unet(320, 2048, 4, [0, 2, 5], [0, 0, 2, 2, 5, 5], [1, 2, 4], -2, adm=2816,
                                             blocks=1)),
    Variant("koala-1b", "KOALA_1B", unet(320, 2048, 4, [0, 2, 6], [0, 0, 2, 2, 6, 6], [1, 2, 4], 6, adm=2816,
                                         blocks=1)),
    Variant("svd", "SVD_img2vid", unet(320, 1024, 8, *SD, adm=768, **VIDEO)),
    Variant("sv3d-u", "SV3D_u", unet(320, 1024, 8, *SD, adm=256, **VIDEO)),
    Variant("sv3d-p", "SV3D_p", unet(320, 1024, 8, *SD, adm=1280, **VIDEO)),
]

IN_PROJ = (r"^(.*\.attn)\.(to_q|to_k|to_v)\.(weight|bias)$", ("to_q", "to_k", "to_v"), r"{0}.in_proj_{2}")
CASCADE = [
    Variant("stable-cascade-c", "Stable_Cascade_C", {"stable_cascade_stage": "c", "c_cond": 2048}, merge=IN_PROJ),
    Variant("stable-cascade-c-lite", "Stable_Cascade_C", {
        "stable_cascade_stage": "c", "c_cond": 1536, "c_hidden": [1536, 1536], "nhead": [24, 24],
        "blocks": [[4, 12], [12, 4]]}, merge=IN_PROJ),
    Variant("stable-cascade-b", "Stable_Cascade_B", {
        "stable_cascade_stage": "b", "c_hidden": [320, 640, 1280, 1280], "nhead": [-1, -1, 20, 20],
        "blocks": [[2, 6, 28, 6], [6, 28, 6, 2]], "block_repeat": [[1, 1, 1, 1], [3, 3, 2, 2]]}, merge=IN_PROJ),
    Variant("stable-cascade-b-lite", "Stable_Cascade_B", {
        "stable_cascade_stage": "b", "c_hidden": [320, 576, 1152, 1152], "nhead": [-1, 9, 18, 18],
        "blocks": [[2, 4, 14, 4], [4, 14, 4, 2]], "block_repeat": [[1, 1, 1, 1], [2, 2, 2, 2]]}, merge=IN_PROJ),
]


# ---- Image transformers

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
    import torch
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


def kandinsky(model: int, time: int, ff: int, into: int, text: int, visual: int, axes: tuple[int, int, int],
              **more: Any) -> dict[str, Any]:
    return {"image_model": "kandinsky5", "model_dim": model, "axes_dims": axes, "time_dim": time, "ff_dim": ff,
            "visual_embed_dim": into, "num_text_blocks": text, "num_visual_blocks": visual} | more


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


# ---- Video

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


# ---- Audio, 3-D, and what is in ComfyUI's list without being a diffusion model

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

NOT_DIFFUSION = [
    Variant("depth-anything-3-large", "DepthAnything3", DA3),
    Variant("rt-detr-v4", "RT_DETR_v4", {"image_model": "RT_DETR_v4", "enc_h": 256}),
]

VARIANTS = [*UNETS, *CASCADE, *IMAGE, *VIDEO_MODELS, *OTHER, *NOT_DIFFUSION]
