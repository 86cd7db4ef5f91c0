"""TPECModelSource: quantize a model as it is in the graph, with LoRAs, merges and other weight patches baked in."""

from comfy_api.latest import io, ui

from .load_checkpoint import describe
from .schema.sockets import CATEGORY, CHECKPOINT


class TPECModelSource(io.ComfyNode):
    #: Results from the cache show their text as well; older versions of ComfyUI know no such field of the schema.
    HAS_INTERMEDIATE_OUTPUT = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECModelSource",
            display_name="Model To Quantize",
            category=CATEGORY,
            description="Takes a model as it is in the graph, with LoRAs, merges and weight patches baked in at full "
                        "precision, instead of a file. The weights are computed layer by layer while they are "
                        "quantized, without a second copy of the model.",
            search_aliases=["bake lora", "merge lora", "quantize lora", "quantize merge", "fp8", "tpec"],
            inputs=[io.Model.Input("model", tooltip="A bf16, fp16 or fp32 model, after Load LoRA and merge nodes.")],
            outputs=[CHECKPOINT.Output("checkpoint"), io.String.Output("summary")],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        from .host.graph_model import graph_model

        handle = graph_model(model)
        text = describe(handle)
        return io.NodeOutput(handle, text, ui=ui.PreviewText(text))
