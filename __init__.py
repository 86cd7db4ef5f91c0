"""ComfyUI node pack: quantize models to native scaled FP8 with TPEC rounding.

Nothing is imported here until ComfyUI asks for the nodes, so tests can collect this folder without ComfyUI.
"""

import logging

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI; returns the pack's ComfyExtension."""
    try:
        from .nodes.extension import TPECExtension
    except Exception:
        # ComfyUI logs one line without a traceback for a failing entry point; the traceback is what helps.
        logging.getLogger(__name__).exception("The TPEC FP8 nodes could not be loaded.")
        raise
    return TPECExtension()
