"""The published diffusion models at their real sizes, as the configurations that ComfyUI's detection returns for them.

Sizes: the models' public configurations, ComfyUI's own class defaults and the constants in its detection. Every entry
is proved by building it, giving its shapes back to ComfyUI's detection, and building what that says: see
build_inventory.py.
"""

from .image import IMAGE
from .others import NOT_DIFFUSION, OTHER
from .unets import CASCADE, UNETS
from .variant import Variant
from .video import VIDEO_MODELS

__all__ = ["UNETS", "VARIANTS", "Variant"]

VARIANTS = [*UNETS, *CASCADE, *IMAGE, *VIDEO_MODELS, *OTHER, *NOT_DIFFUSION]
