"""The pack's nodes, as ComfyUI's V3 API wants them.

ComfyUI imports all of this at its start. What only runs need (the engine above all) is imported where it is used.
"""

from comfy_api.latest import ComfyExtension, io

from ..tpec.errors import TpecError
from .calibrate import TPECCalibrate
from .calibrate_text import TPECCalibrateText
from .calibration_files import TPECLoadCalibration, TPECSaveCalibration
from .compare import TPECCompare
from .load_checkpoint import TPECLoadCheckpoint
from .load_scaled import TPECLoadScaledFP8
from .model_source import TPECModelSource
from .quantize import TPECQuantizeFP8
from .report import TPECReport
from .save_scaled import TPECSaveScaledFP8

# ComfyUI's dialogs show an exception's module before its name: for a pack that is its path on the disk.
TpecError.__module__ = "builtins"

NODES: list[type[io.ComfyNode]] = [
    TPECLoadCheckpoint,
    TPECModelSource,
    TPECQuantizeFP8,
    TPECSaveScaledFP8,
    TPECLoadScaledFP8,
    TPECCalibrate,
    TPECCalibrateText,
    TPECSaveCalibration,
    TPECLoadCalibration,
    TPECReport,
    TPECCompare,
]


class TPECExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
