"""Models small enough for a CPU in the layouts of ComfyUI's classes, and why the other classes have none."""

from dataclasses import dataclass, field
from typing import Any

from variants.image import (
    chroma,
    flux,
    flux2,
    hunyuan_image,
    hydit,
    lumina,
    pixart,
    qwen,
    sd3,
    z_image,
)
from variants.others import hunyuan3d, seconds, stable_audio
from variants.unets import VIDEO, unet
from variants.variant import Variant, scale_norms, tencent
from variants.video import cogvideo, hunyuan_video, hunyuan_video15, kandinsky, predict2, told


@dataclass(frozen=True)
class Tiny:
    """A small model: how to build it, the width of the text that it takes, and what else its conditioning holds."""

    variant: Variant
    context: int
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)   # conditioning entries by shape
    latent: tuple[int, ...] = ()                                     # behind the channels; () for the class's usual
    sound: tuple[int, ...] = ()                                      # a second latent, for models of pictures and sound
    tokens: int = 8


def of(name: str, config: dict[str, Any], context: int, extra: dict[str, tuple[int, ...]] | None = None,
       latent: tuple[int, ...] = (), sound: tuple[int, ...] = (), tokens: int = 8, **more: Any) -> Tiny:
    return Tiny(Variant(f"tiny-{name}", name, config, **more), context, extra or {}, latent, sound, tokens)


ONE = ([1, 1], [1, 1, 1, 1], [1, 1], 1)
SEVEN = ([1, 1, 1, 1, 1, 1, 0, 0], [1] * 9 + [0] * 3, [1, 1, 1, 1], 1)


def small_wan(kind: str, into: int, out: int = 16, **more: Any) -> dict[str, Any]:
    return {"image_model": "wan2.1", "dim": 256, "out_dim": out, "num_heads": 2, "ffn_dim": 512, "num_layers": 2,
            "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True,
            "eps": 1e-6, "in_dim": into, "model_type": kind} | more


SMALL_FLUX = {"hidden_size": 256, "num_heads": 2}
SMALL_LTXAV = {"num_attention_heads": 2, "attention_head_dim": 64, "cross_attention_dim": 128, "caption_channels": 96,
               "audio_num_attention_heads": 2, "audio_attention_head_dim": 32, "audio_cross_attention_dim": 64,
               "connector_num_attention_heads": 2, "connector_attention_head_dim": 48, "connector_num_layers": 1}
SMALL_H3 = {"image_model": "minimax_h3", "num_layers": 2, "token_refiner_num_layers": 1, "hidden_size": 256,
            "num_attention_heads": 2, "attention_head_dim": 128, "ffn_hidden_size": 512, "text_dim": 96,
            "time_embed_hidden_size": 128, "time_embed_dim": 64}

TINY = [
    of("SD15", unet(320, 768, 4, *ONE, linear=False, blocks=1), 768),
    of("SD15_instructpix2pix", unet(320, 768, 8, *ONE, linear=False, blocks=1), 768),
    of("Stable_Zero123", unet(320, 768, 8, *ONE, linear=False, blocks=1), 768,
       beside={"cc_projection.weight": (768, 772), "cc_projection.bias": (768,)}),
    of("SD20", unet(320, 1024, 4, *ONE, blocks=1), 1024),
    of("LotusD", unet(320, 1024, 4, *ONE, blocks=1, adm=4), 1024),
    of("SD21UnclipL", unet(320, 1024, 4, *ONE, blocks=1, adm=1536), 1024),
    of("SD21UnclipH", unet(320, 1024, 4, *ONE, blocks=1, adm=2048), 1024),
    of("SD_X4Upscaler", unet(256, 1024, 7, [0, 0] + [1] * 6, [1] * 9 + [0] * 3, [1, 1, 1, 1], 1), 1024),
    of("Segmind_Vega", unet(320, 2048, 4, [0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2], [1, 1, 1], -1, adm=2816),
       2048, {"pooled_output": (1, 1280)}),
    of("KOALA_700M", unet(320, 2048, 4, [0, 2, 5], [0, 0, 2, 2, 5, 5], [1, 1, 1], -2, adm=2816, blocks=1), 2048,
       {"pooled_output": (1, 1280)}),
    of("SVD_img2vid", unet(320, 1024, 8, *SEVEN, adm=768, **VIDEO), 1024, latent=(8, 8)),
    of("SV3D_u", unet(320, 1024, 8, *SEVEN, adm=256, **VIDEO), 1024, latent=(8, 8)),
    of("SV3D_p", unet(320, 1024, 8, *SEVEN, adm=1280, **VIDEO), 1024, latent=(8, 8)),
    of("SD3", sd3(2, 16) | {"context_embedder_config": {"target": "torch.nn.Linear", "params": {
        "in_features": 64, "out_features": 128}}}, 64, {"pooled_output": (1, 2048)}),
    of("PixArtAlpha", pixart("pixart_alpha", 16, 64, True) | {"depth": 2}, 4096, latent=(32, 64)),
    of("PixArtSigma", pixart("pixart_sigma", 16, 64, False) | {"depth": 2}, 4096, latent=(32, 64)),
    of("HunyuanDiT", hydit("hydit", depth=2, hidden_size=256, mlp_ratio=4.0), 1024,
       {"conditioning_mt5xl": (1, 256, 2048), "attention_mask": (1, 77), "attention_mask_mt5xl": (1, 256)}, tokens=77),
    of("HunyuanDiT1", hydit("hydit1", depth=2, hidden_size=1408, mlp_ratio=4.0, size_cond=True, use_style_cond=True),
       1024,
       {"conditioning_mt5xl": (1, 256, 2048), "attention_mask": (1, 77), "attention_mask_mt5xl": (1, 256)}, tokens=77),
    of("Flux", flux(1, 2, context=64, **SMALL_FLUX), 64, {"pooled_output": (1, 768)}, rename=scale_norms),
    of("FluxInpaint", flux(1, 2, into=96, context=64, **SMALL_FLUX), 64, {"pooled_output": (1, 768)}),
    of("FluxSchnell", flux(1, 2, context=64, guidance_embed=False, **SMALL_FLUX), 64, {"pooled_output": (1, 768)}),
    of("LongCatImage", flux(1, 2, context=3584, vec_in_dim=None, guidance_embed=False, txt_ids_dims=[1, 2],
                            **SMALL_FLUX), 3584),
    of("Flux2", flux2(256, 1, 2, 96, True), 96),
    of("Lens", {"image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2, "enc_hidden_dim": 48,
                "num_attention_heads": 2, "multi_layer_encoder_feature": True, "selected_layer_index": (0, 1)}, 96,
       {"num_layers_stacked": ()}),
    of("Krea2", {"image_model": "krea2", "features": 256, "channels": 16, "patch": 2, "layers": 2, "heads": 2,
                 "kvheads": 1, "txtlayers": 2, "txtdim": 320}, 640, latent=(1, 16, 16)),
    of("JoyImage", {"image_model": "joyimage", "in_channels": 16, "hidden_size": 256, "patch_size": [1, 2, 2],
                    "num_layers": 2, "num_attention_heads": 2, "text_dim": 4096}, 4096),
    of("Kandinsky5", kandinsky(128, 64, 256, 132, 1, 2, (16, 24, 24)), 3584, {"pooled_output": (1, 768)}),
    of("HunyuanImage21", hunyuan_image(hidden_size=256, num_heads=2, depth=1, depth_single_blocks=2, axes_dim=[64, 64],
                                       context_in_dim=96), 96),
    of("HunyuanImage21Refiner", hunyuan_image(
        in_channels=128, hidden_size=256, num_heads=2, depth=1, depth_single_blocks=2, patch_size=[1, 1, 1],
        axes_dim=[16, 56, 56], context_in_dim=96, byt5=False, guidance_embed=True), 96),
    of("HunyuanVideo", hunyuan_video(16, 256, depth=1, depth_single_blocks=2, context_in_dim=96), 96,
       {"pooled_output": (1, 768)}, rename=tencent),
    of("HunyuanVideoI2V", hunyuan_video(33, 256, depth=1, depth_single_blocks=2, context_in_dim=96), 96,
       {"pooled_output": (1, 768)}, rename=tencent),
    of("HunyuanVideoSkyreelsI2V", hunyuan_video(32, 256, depth=1, depth_single_blocks=2, context_in_dim=96), 96,
       {"pooled_output": (1, 768)}),
    of("HunyuanVideo15", hunyuan_video15(65, hidden_size=256, num_heads=2, depth=2, context_in_dim=96), 96,
       {"pooled_output": (1, 768)}),
    of("HunyuanVideo15_SR_Distilled", hunyuan_video15(98, hidden_size=256, num_heads=2, depth=2, context_in_dim=96), 96,
       {"pooled_output": (1, 768)}),
    of("WAN21_T2V", small_wan("t2v", 16), 4096),
    of("WAN22_T2V", small_wan("t2v", 48, 48), 4096),
    of("WAN21_I2V", small_wan("i2v", 36), 4096),
    of("WAN21_FunControl2V", small_wan("i2v", 48), 4096),
    of("WAN21_Vace", small_wan("vace", 16, vace_in_dim=96, vace_layers=1), 4096),
    of("WAN21_Camera", small_wan("camera", 32), 4096),
    of("WAN22_Camera", small_wan("camera_2.2", 36), 4096),
    of("WAN21_HuMo", small_wan("humo", 36), 4096),
    of("WAN22_Animate", small_wan("animate", 36, num_layers=5), 4096),
    of("WAN_Animate2", small_wan("animate2", 36), 4096, metadata=told(model_type="animate2")),
    of("WAN21_FlowRVS", small_wan("flow_rvs", 16), 4096, metadata=told(model_type="flow_rvs")),
    of("WAN21_SCAIL", small_wan("scail", 20), 4096),
    of("WAN21_SCAIL2", small_wan("scail2", 20), 4096),
    of("WAN22_WanDancer", small_wan("wandancer", 36), 4096),
    of("WAN21_CausalAR_T2V", small_wan("t2v", 16, causal_ar=True), 4096, metadata=told(causal_ar=True)),
    of("WAN22_S2V", small_wan("s2v", 16), 4096),
    of("LTXV", {"image_model": "ltxv", "num_layers": 2, "attention_head_dim": 8, "cross_attention_dim": 256}, 4096,
       {"attention_mask": (1, 8)}),
    of("LTXAV", {"image_model": "ltxav", "num_layers": 2, **SMALL_LTXAV}, 192, sound=(1, 8, 9, 16),
       metadata=told(**SMALL_LTXAV)),
    of("CosmosT2IPredict2", predict2(16, 256, 2, num_heads=16), 1024),
    of("CosmosI2VPredict2", predict2(17, 256, 2, num_heads=16), 1024),
    of("CogVideoX_T2V", cogvideo(2, 2, 16), 4096),
    of("CogVideoX_I2V", cogvideo(2, 2, 32), 4096),
    of("CogVideoX_Inpaint", cogvideo(2, 2, 48, patch_size_t=2), 4096),
    of("MiniMaxH3", SMALL_H3, 96),
    of("StableAudio", stable_audio(embed_dim=768, depth=2), 768, beside=seconds("start", 257) | seconds("total", 257)),
    of("StableAudio3", stable_audio(
        embed_dim=256, depth=2, global_cond_dim=768, io_channels=256, local_add_cond_dim=257, num_memory_tokens=4,
        global_cond_shared_embed=True, global_cond_type="adaLN", norm_type="rms_norm", num_heads=4,
        attn_kwargs={"qk_norm": "rms", "differential": False}, timestep_features_type="expo", project_cond_tokens=True),
       768,
       beside=seconds("total", 256)),
    of("Hunyuan3Dv2", hunyuan3d(1, 2) | {"hidden_size": 256, "context_in_dim": 96}, 96),
    of("Hunyuan3Dv2mini", hunyuan3d(8, 1) | {"hidden_size": 256, "context_in_dim": 96}, 96),
    of("Hunyuan3Dv2_1", {"image_model": "hunyuan3d2_1", "in_channels": 64, "context_dim": 1024, "hidden_size": 256,
                         "mlp_ratio": 4.0, "num_heads": 16, "depth": 7, "qkv_bias": False,
                         "guidance_cond_proj_dim": None}, 1024),
]

# One block of models whose width ComfyUI does not read from the file: up to two gigabytes.
LARGE = [
    of("QwenImage", qwen(num_layers=1), 3584, latent=(1, 8, 8)),
    of("MageFlow", {"image_model": "mage_flow", "in_channels": 128, "num_layers": 1}, 2560, latent=(8, 8)),
    of("AuraFlow", {"max_seq": 256, "cond_seq_dim": 2048, "n_double_layers": 1, "n_layers": 2}, 2048, latent=(8, 8)),
    of("Chroma", chroma(depth=1, depth_single_blocks=1), 4096, latent=(8, 8), rename=scale_norms),
    of("Lumina2", lumina(2304, 1, 2304), 2304, {"attention_mask": (1, 8)}, latent=(8, 8)),
    of("ZImage", z_image(n_layers=1, pad_tokens_multiple=32), 2560, latent=(8, 8)),
    of("Ideogram4", {"image_model": "ideogram4", "in_channels": 128, "num_layers": 1}, 53248, latent=(8, 8)),
]

_FIXED = "ComfyUI's class fixes its width and depth: the smallest that it takes has billions of parameters"
_DEPTH = "ComfyUI knows the class by its depth, hundreds of millions of parameters; {} has the same modules"
#: Classes without a small model, and why.
NONE = {
    "SDXL": _DEPTH.format("Segmind_Vega"), "SDXL_instructpix2pix": _DEPTH.format("Segmind_Vega"),
    "SDXLRefiner": _DEPTH.format("Segmind_Vega"), "SSD1B": _DEPTH.format("Segmind_Vega"),
    "KOALA_1B": _DEPTH.format("KOALA_700M"), "Stable_Cascade_C": _FIXED, "Stable_Cascade_B": _FIXED,
    "ChromaRadiance": "fixed width as Chroma, whose blocks it has", "Kandinsky5Image": "known by a width of 2560; "
    "Kandinsky5 has the same modules", "ZImagePixelSpace": "fixed width as ZImage, whose blocks it has",
    "PixelDiTT2I": _FIXED, "PiD": _FIXED, "HiDream": _FIXED, "HiDreamO1": _FIXED, "Omnigen2": _FIXED, "Boogu": _FIXED,
    "ErnieImage": _FIXED, "GenmoMochi": _FIXED, "CosmosT2V": _FIXED, "CosmosI2V": _FIXED, "SeedVR2": _FIXED,
    "Anima": "its text adapter has a fixed width; CosmosT2IPredict2 has the same blocks", "ACEStep": _FIXED,
    "ACEStep15": "its tokenizer has a fixed width", "MiniMaxMusic3": _FIXED, "TripoSplat": _FIXED, "Trellis2": _FIXED,
    "DepthAnything3": "no diffusion model", "RT_DETR_v4": "no diffusion model",
    "SAM3": "no diffusion model", "SAM31": "no diffusion model",
}
