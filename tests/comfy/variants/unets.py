"""UNets: Stability's and their relatives' configurations, and Stable Cascade's."""

from typing import Any

from .variant import Variant


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
