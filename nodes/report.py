"""TPECReport: what quantizing did to each layer, as a picture and a table."""

from comfy_api.latest import io, ui

from ..tpec.report import LayerReport
from .handles import CATEGORY, QUANTIZED, QuantizedHandle
from .plot import line_plot


class TPECReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECReport",
            display_name="TPEC Quantization Report",
            category=CATEGORY,
            description="The error of every layer, as a picture and as a table.",
            search_aliases=["quantization report", "tpec"],
            inputs=[QUANTIZED.Input("quantized")],
            outputs=[io.Image.Output("plot"), io.String.Output("table")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, quantized: QuantizedHandle) -> io.NodeOutput:
        text = quantized.text()
        return io.NodeOutput(_plot(quantized.report.layers), text, ui=ui.PreviewText(text))


def _plot(layers: tuple[LayerReport, ...]):
    series = {
        "round to nearest": [layer.nearest_error for layer in layers],
        "all weights alike": [layer.relative_error for layer in layers],
        "as the metric weighs them": [layer.nearest_error * layer.error_ratio for layer in layers],
    }
    return line_plot("Relative error of each layer", series, "layers in file order")
