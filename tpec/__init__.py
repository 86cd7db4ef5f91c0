"""TPEC FP8: quantize diffusion models and text encoders to ComfyUI's native scaled FP8. Never imports ComfyUI."""

__version__ = "0.1.0"
