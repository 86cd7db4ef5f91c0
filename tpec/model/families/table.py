"""All families, in the order in which they are tried, which is that of ComfyUI's `comfy/model_detection.py`."""

from .audio_3d import ACE_STEP, ACE_STEP15, HUNYUAN3D, HUNYUAN3D21, MINIMAX_MUSIC3, STABLE_AUDIO, TRELLIS2, TRIPOSPLAT
from .family import Family
from .image import AURAFLOW, CHROMA, FLUX, FLUX2, HIDREAM, HUNYUAN_DIT, LUMINA2, PIXART, PIXELDIT, SD3, Z_IMAGE
from .image_llm import BOOGU, ERNIE, HIDREAM_O1, IDEOGRAM4, JOYIMAGE, KANDINSKY5, KREA2, LENS, OMNIGEN2, QWEN_IMAGE
from .text import (
    GEMMA2,
    GEMMA3,
    GEMMA3_12B,
    GEMMA4,
    GPT_OSS,
    LLAMA,
    MISTRAL,
    QWEN3,
    QWEN3_VL,
    QWEN25_VL,
    QWEN35,
    T5XXL,
    UMT5XXL,
)
from .unet import CASCADE, SD, SDXL, SVD
from .video import ANIMA, COGVIDEOX, COSMOS1, COSMOS_PREDICT2, HUNYUAN_VIDEO, LTX, MINIMAX_H3, MOCHI, SEEDVR2, WAN

CUSTOM = Family("custom", "layers named by --include", (), needs=(), linears=())
GENERIC = Family("generic", "model that only ComfyUI knows", (), needs=(), linears=())

DIFFUSION: tuple[Family, ...] = (
    MINIMAX_MUSIC3, SD3, CASCADE, TRELLIS2, STABLE_AUDIO, AURAFLOW, HUNYUAN_DIT, HUNYUAN_VIDEO, FLUX2, CHROMA, FLUX,
    MOCHI, MINIMAX_H3, LTX, ACE_STEP, PIXART, COSMOS1, PIXELDIT, Z_IMAGE, LUMINA2, COGVIDEOX, SEEDVR2, WAN, HUNYUAN3D,
    HUNYUAN3D21, TRIPOSPLAT, HIDREAM_O1, HIDREAM, ANIMA, COSMOS_PREDICT2, BOOGU, OMNIGEN2, LENS, QWEN_IMAGE, IDEOGRAM4,
    KREA2, KANDINSKY5, ACE_STEP15, ERNIE, JOYIMAGE, SVD, SDXL, SD)
TEXT: tuple[Family, ...] = (
    UMT5XXL, T5XXL, GEMMA3_12B, GEMMA4, GEMMA3, GEMMA2, GPT_OSS, QWEN25_VL, QWEN35, QWEN3_VL, QWEN3, MISTRAL, LLAMA)

FAMILIES: dict[str, Family] = {family.name: family for family in (*DIFFUSION, *TEXT)}

#: Prefixes of the diffusion model that ComfyUI takes off (`unet_prefix_from_state_dict`), and none.
PREFIXES = ("", "model.diffusion_model.", "model.model.", "net.", "model.")
#: Prefixes that training programs write and ComfyUI does not take off.
FOREIGN_PREFIXES = ("transformer.", "diffusion_model.", "module.", "_orig_mod.", "model.diffusion_model._orig_mod.",
                    "unet.", "dit.")


#: What names of text encoders in full checkpoints begin with.
ENCODER_PREFIXES = ("text_encoders.", "text_encoder.", "cond_stage_model.", "conditioner.")


def encoder_prefixes() -> tuple[str, ...]:
    """Where full checkpoints hold text encoders."""
    return tuple(dict.fromkeys(encoder.prefix for family in DIFFUSION for encoder in family.encoders if encoder.family))


def family_names() -> tuple[str, ...]:
    """The values of the `family` setting."""
    return ("auto", *FAMILIES)
