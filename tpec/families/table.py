"""All families, in the order in which they are tried, which is that of ComfyUI's `comfy/model_detection.py`."""

from .family import Family
from .flux import CHROMA, FLUX
from .text import T5XXL

CUSTOM = Family("custom", "layers named by --include", (), needs=(), linears=())
GENERIC = Family("generic", "model that only ComfyUI knows", (), needs=(), linears=())

DIFFUSION: tuple[Family, ...] = (FLUX, CHROMA)
TEXT: tuple[Family, ...] = (T5XXL,)

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
    return tuple(dict.fromkeys(encoder.prefix for family in DIFFUSION for encoder in family.encoders))


def family_names() -> tuple[str, ...]:
    """The values of the `family` setting."""
    return ("auto", *FAMILIES)
