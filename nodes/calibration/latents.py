"""Empty latents of the size that a model is usually sampled with."""

import math
from dataclasses import dataclass, replace

import comfy.model_management as memory
import torch

from ...tpec.errors import TpecError

PICTURE, VIDEO, AUDIO = "pictures", "video", "audio"


@dataclass(frozen=True)
class Size:
    """What a model usually makes: pictures or video in pixels and frames, or seconds of sound.

    `rate` is the number of latent steps in a second of sound, in `rows` rows where the latent has two dimensions.
    """

    kind: str = PICTURE
    width: int = 1024
    height: int = 1024
    frames: int = 1
    seconds: float = 0.0
    rate: float = 0.0
    rows: int = 0

    def text(self) -> str:
        if self.kind == AUDIO:
            return f"{self.seconds:g} seconds of sound"
        return f"{self.width} x {self.height}" + (f", {self.frames} frames" if self.frames > 1 else "")


def _video(width: int, height: int, frames: int) -> Size:
    return Size(VIDEO, width, height, frames)


def _audio(seconds: float, rate: float, rows: int = 0) -> Size:
    return Size(AUDIO, 0, 0, 1, seconds, rate, rows)


#: By the name of ComfyUI's class (comfy.supported_models) of a model or of an ancestor; None where a prompt alone makes
#: nothing. Classes of pictures of 1024 x 1024 need no entry unless their latents are those of a video model.
_SIZES: dict[str, Size | None] = {
    "SD15": Size(width=512, height=512), "SD20": Size(width=768, height=768),
    "HunyuanImage21": Size(width=2048, height=2048), "QwenImage": Size(width=1328, height=1328),
    "CosmosT2IPredict2": Size(), "Anima": Size(), "Krea2": Size(), "JoyImage": Size(), "Kandinsky5Image": Size(),
    "WAN21_T2V": _video(832, 480, 81), "WAN22_T2V": _video(1280, 704, 121), "HunyuanVideo": _video(848, 480, 73),
    "HunyuanVideo15": _video(848, 480, 121), "LTXV": _video(768, 512, 97), "GenmoMochi": _video(848, 480, 37),
    "CosmosT2V": _video(1280, 704, 121), "CosmosI2VPredict2": _video(848, 480, 93), "Kandinsky5": _video(768, 512, 121),
    "CogVideoX_T2V": _video(720, 480, 49),
    "StableAudio": _audio(47.6, 44100 / 2048), "StableAudio3": _audio(47.6, 44100 / 4096),
    "ACEStep": _audio(120, 44100 / 4096, 16), "ACEStep15": _audio(120, 25),
    **dict.fromkeys(("SVD_img2vid", "Stable_Zero123", "SD_X4Upscaler", "Stable_Cascade_B", "LTXAV", "MiniMaxH3",
                     "HunyuanImage21Refiner", "HunyuanVideo15_SR_Distilled", "SeedVR2", "Hunyuan3Dv2", "TripoSplat",
                     "Trellis2", "RT_DETR_v4", "DepthAnything3", "SAM3", "LotusD", "PiD")),
}


def usual_size(config: object, latent_format: object) -> Size | None:
    """What a model of ComfyUI's class of `config` usually makes; None when that is not known."""
    for ancestor in type(config).__mro__:
        if ancestor.__name__ in _SIZES:
            return _SIZES[ancestor.__name__]
    return Size() if getattr(latent_format, "latent_dimensions", 2) == 2 else None


def latent_shape(size: Size, latent_format: object) -> tuple[int, ...]:
    """[1, channels, (frames,) height, width] for a latent of such a size, [1, channels, (rows,) steps] for sound."""
    channels = latent_format.latent_channels
    if size.kind == AUDIO:
        # An even number, as Stable Audio wants it.
        steps = round(size.seconds * size.rate / 2) * 2
        return (1, channels, size.rows, steps) if size.rows else (1, channels, steps)
    ratio = getattr(latent_format, "spacial_downscale_ratio", 8)
    picture = (size.height // ratio, size.width // ratio)
    if getattr(latent_format, "latent_dimensions", 2) == 2:
        return (1, channels, *picture)
    return (1, channels, (size.frames - 1) // getattr(latent_format, "temporal_downscale_ratio", 1) + 1, *picture)


def modest(size: Size, tokens: int, pixels: int = 16) -> Size:
    """`size`, smaller where that many tokens of `pixels` x `pixels` are enough: for statistics, not for looking at.

    Sides are multiples of 64 and at least 256. Videos get smaller first, then shorter, by the frames of most models:
    one and multiples of four.
    """
    if size.kind == AUDIO:
        return size
    wide = min(1.0, max(pixels * math.sqrt(tokens / (size.width * size.height)), 0.5 if size.frames > 1 else 0.0))
    width, height = (max(min(side, 256), round(side * wide / 64) * 64) for side in (size.width, size.height))
    frames = 4 * math.ceil(tokens * pixels**2 / (width * height)) + 1
    return replace(size, width=min(width, size.width), height=min(height, size.height),
                   frames=min(size.frames, frames))


def kind_of(patcher) -> str:
    """What a ModelPatcher's model makes: pictures, video or audio."""
    latent_format = patcher.get_model_object("latent_format")
    size = usual_size(patcher.model.model_config, latent_format)
    return size.kind if size is not None else {1: AUDIO, 3: VIDEO}.get(latent_format.latent_dimensions, PICTURE)


def size_of(patcher) -> Size:
    """The usual size of a ModelPatcher's model. Raises TpecError when it is not known."""
    size = usual_size(patcher.model.model_config, patcher.get_model_object("latent_format"))
    if size is None:
        raise TpecError(f"The usual size of {type(patcher.model).__name__} is not known, or it makes nothing from a "
                        "prompt alone: connect latent_image, positive and negative as you do for KSampler.")
    return size


def empty_latent(patcher, size: Size) -> dict:
    """A LATENT of zeros, one of a batch."""
    shape = latent_shape(size, patcher.get_model_object("latent_format"))
    return {"samples": torch.zeros(shape, device=memory.intermediate_device())}
