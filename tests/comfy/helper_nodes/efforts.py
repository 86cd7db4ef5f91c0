"""How much models sample that calibrate themselves, for those who measure it."""

import importlib
import sys

from comfy_api.latest import io, ui

_AUTOMATIC = "nodes.calibration.automatic"
_QUANTIZE = ".nodes.quantize"


class TestEffort(io.ComfyNode):
    """From now on models that calibrate themselves do it so, on however slow a machine."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestEffort", category="tests", is_output_node=True,
                         inputs=[io.Int.Input("runs", min=1), io.Int.Input("steps", min=1),
                                 io.Boolean.Input("backwards")],
                         outputs=[io.String.Output()])

    @classmethod
    def execute(cls, runs: int, steps: int, backwards: bool) -> io.NodeOutput:
        packs = [name.removesuffix(_QUANTIZE) for name in sys.modules if name.endswith(_QUANTIZE)]
        automatic = importlib.import_module(f"{packs[0]}.{_AUTOMATIC}")
        automatic.EFFORTS = (automatic.Effort(runs, steps, backwards, float("inf")),)
        text = f"{automatic.EFFORTS[0].evaluations:.0f}"
        return io.NodeOutput(text, ui=ui.PreviewText(text))
