"""TPECSaveScaledFP8: give the result a name among ComfyUI's models, and that name to the stock loaders."""

from pathlib import Path

from comfy_api.latest import io, ui

from ..tpec.errors import TpecError
from ..tpec.publish import IF_EXISTS, publish
from .bridge import NodeProgress
from .handles import CATEGORY, QUANTIZED, QuantizedHandle
from .paths import LOCATIONS, hidden_by, loader_name, save_root, save_target
from .saved import fingerprint, save_once
from .spool import whole


class _ComboType(str):
    """COMBO that fits the stock loaders too: their combos have a plain list as type, which no name equals.

    ComfyUI's prompt validation asks for `!=` so that types can say themselves what they fit.
    """

    def __ne__(self, other: object) -> bool:
        return not isinstance(other, list) and str.__ne__(self, other)


FILE_NAME = io.Custom(_ComboType("COMBO"))


class TPECSaveScaledFP8(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECSaveScaledFP8",
            display_name="Save Scaled FP8",
            category=CATEGORY,
            description="Saves the quantized file where ComfyUI's own loaders find it. Connect model_name to the file "
                        "name input of Load Diffusion Model, Load Checkpoint or Load CLIP to use it in the same run.",
            search_aliases=[
                "save fp8", "save quantized model", "save smaller model", "save compressed model", "convert fp8",
                "tpec",
            ],
            inputs=[
                QUANTIZED.Input("quantized"),
                io.String.Input("filename", default="my_model_fp8_scaled",
                                tooltip="A name, with subfolders if you like; .safetensors is added."),
                io.Combo.Input("folder", options=list(LOCATIONS), default="models",
                               tooltip="models: the model folder of this kind of file. output: the subfolder of the "
                                       "output folder that the loaders list as well."),
                io.Combo.Input("if_exists", options=list(IF_EXISTS), default="error",
                               tooltip="When the name is taken: stop, add a number, or replace the file."),
            ],
            outputs=[FILE_NAME.Output("model_name"), io.String.Output("path")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, quantized, filename: str, folder: str, if_exists: str) -> str:
        return fingerprint("TPECSaveScaledFP8", filename, folder, if_exists)

    @classmethod
    def execute(cls, quantized: QuantizedHandle, filename: str, folder: str, if_exists: str) -> io.NodeOutput:
        if folder not in LOCATIONS or if_exists not in IF_EXISTS:
            raise TpecError(f"Folder '{folder}' or if_exists '{if_exists}' is not one of the node's choices.")
        choice = ("TPECSaveScaledFP8", filename, folder, if_exists)
        root = save_root(quantized.kind, folder)
        path = save_once(choice, quantized.key,
                         lambda: _publish(cls.hidden.unique_id, quantized, root, filename, if_exists))
        name = loader_name(quantized.kind, root, path)
        return io.NodeOutput(name, str(path), ui=ui.PreviewText(f"Saved as {path}"))


def _publish(node_id: str, quantized: QuantizedHandle, root: Path, filename: str, if_exists: str) -> Path:
    target = save_target(root, filename)
    other = hidden_by(quantized.kind, root, target)
    if other:
        raise TpecError(f"ComfyUI's loaders would find '{other}' under this name first: choose a different name.")
    spool = whole(quantized, NodeProgress(node_id)).path
    return publish(spool, target, if_exists)
