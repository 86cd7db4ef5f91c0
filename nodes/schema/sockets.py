"""The pack's own types of links, and where the menu has its nodes; what travels along the links is in `handles`."""

from comfy_api.latest import io

CHECKPOINT = io.Custom("TPEC_CHECKPOINT")
CALIBRATION = io.Custom("TPEC_CALIBRATION")
QUANTIZED = io.Custom("TPEC_QUANTIZED")

CATEGORY = "TPEC FP8"
