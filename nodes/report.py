"""TPECReport: what quantizing did to each layer, as a picture and a table."""

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..tpec.page.theme import THEMES
from .schema.sockets import CATEGORY, QUANTIZED

if TYPE_CHECKING:
    from .handles import QuantizedHandle


class TPECReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECReport",
            display_name="TPEC Quantization Report",
            category=CATEGORY,
            description="The error of every layer against plain FP8 rounding, as a picture and as a table.",
            search_aliases=["quantization report", "quantization error", "fp8 report", "layer errors", "tpec"],
            inputs=[
                QUANTIZED.Input("quantized"),
                io.Combo.Input("theme", options=list(THEMES), default="dark", optional=True,
                               tooltip="The picture's colours."),
            ],
            outputs=[
                io.Image.Output("plot", tooltip="A bar per layer: this file in front of plain rounding."),
                io.String.Output("table", tooltip="A Markdown table of all layers: scales and errors."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, quantized: "QuantizedHandle", theme: str = "dark") -> io.NodeOutput:
        from .drawing.bars import bar_picture

        picture = bar_picture(quantized.report, theme)
        return io.NodeOutput(picture, quantized.text(), ui=ui.PreviewText(quantized.summary()))
