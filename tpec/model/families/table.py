"""All families, in the order in which they are tried (`model.order`)."""

from .. import order
from . import audio_3d, image, image_llm, text, unet, video
from .family import Family

CUSTOM = Family("custom", "layers named by --include", (), needs=(), linears=())
GENERIC = Family("generic", "model that only ComfyUI knows", (), needs=(), linears=())

_KNOWN = {family.name: family for module in (audio_3d, image, image_llm, text, unet, video)
          for family in vars(module).values() if isinstance(family, Family)}
DIFFUSION: tuple[Family, ...] = tuple(_KNOWN[name] for name in order.DIFFUSION)
TEXT: tuple[Family, ...] = tuple(_KNOWN[name] for name in order.TEXT)

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
