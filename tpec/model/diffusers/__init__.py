"""Models in diffusers layout, read as if their files had ComfyUI's.

ComfyUI converts these layouts on load, and a scale would not survive that; so they are quantized under ComfyUI's names,
with q, k and v as one tensor. The facts are those of ComfyUI v0.33.0 (`convert_diffusers_mmdit` in
comfy/model_detection.py, the maps in comfy/utils.py); tests/comfy/test_diffusers_layout.py holds them to its own.
"""

from .arrange import LAYOUTS, in_comfyui_layout

__all__ = ["LAYOUTS", "in_comfyui_layout"]
