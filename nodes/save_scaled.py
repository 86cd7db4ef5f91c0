"""TPECSaveScaledFP8: give the result a name among ComfyUI's models, and that name to the stock loaders."""

from pathlib import Path
from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..tpec.errors import TpecError
from ..tpec.files.publish import IF_EXISTS
from .host.paths import free_space, loader_name, save_choices, save_root
from .schema.sockets import CATEGORY, QUANTIZED

if TYPE_CHECKING:
    from .handles import QuantizedHandle


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
        folders = save_choices()
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
                # Lazy, so that this node can refuse a name before the work is done.
                QUANTIZED.Input("quantized", lazy=True),
                io.String.Input("filename", default="my_model_fp8_scaled",
                                tooltip="A name, with subfolders if you like; .safetensors is added."),
                io.Combo.Input("folder", options=folders, default="models", extra_dict={"free": free_space(folders)},
                               tooltip="models: the model folder of this kind of file. output: the subfolder of the "
                                       "output folder that the loaders list as well. Others: the folders of "
                                       "extra_model_paths.yaml."),
                io.Combo.Input("if_exists", options=list(IF_EXISTS), default="number",
                               tooltip="When the name is taken: stop before any work, add a number, or replace the "
                                       "file."),
            ],
            outputs=[FILE_NAME.Output("model_name"), io.String.Output("path")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename: str = "a") -> bool | str:
        from .saving.containment import safe_parts

        try:
            safe_parts(filename)
        except TpecError as error:
            return str(error)
        return True

    @classmethod
    def check_lazy_status(cls, filename: str, folder: str, if_exists: str,
                          quantized: "QuantizedHandle | None" = None) -> list[str]:
        """Called before anything this node needs is computed."""
        from .host.progress import NodeProgress
        from .saving.destination import destination, kind_of_result, refuse_taken, room_left
        from .saving.save_once import stands

        node = cls.hidden.unique_id
        kind = kind_of_result(cls.hidden.dynprompt, node, "quantized")
        if quantized is None and kind is not None:
            target = destination(kind, folder, filename)
            if if_exists == "error" and not stands(_choice(filename, folder, if_exists)):
                refuse_taken(target, "Nothing was computed yet.")
            NodeProgress(node).text(f"Will be {target.name} in {target.parent}\n{room_left(target)}")
        return ["quantized"]

    @classmethod
    def fingerprint_inputs(cls, quantized, filename: str, folder: str, if_exists: str) -> str:
        from .saving.save_once import fingerprint

        return fingerprint(*_choice(filename, folder, if_exists))

    @classmethod
    def execute(cls, quantized: "QuantizedHandle", filename: str, folder: str, if_exists: str) -> io.NodeOutput:
        from .saving.save_once import save_once

        root = save_root(quantized.kind, folder)
        path = save_once(_choice(filename, folder, if_exists), quantized.key,
                         lambda: _publish(cls.hidden.unique_id, quantized, folder, filename, if_exists))
        name = loader_name(quantized.kind, root, path)
        said = f"Saved as {name}\namong {quantized.kind}, folder {folder}"
        return io.NodeOutput(name, str(path), ui=ui.PreviewText(said))


def _choice(filename: str, folder: str, if_exists: str) -> tuple[str, ...]:
    return "TPECSaveScaledFP8", filename, folder, if_exists


def _publish(node_id: str, quantized: "QuantizedHandle", folder: str, filename: str, if_exists: str) -> Path:
    from ..tpec.files.publish import publish
    from .host.progress import NodeProgress
    from .host.results import ensure_file
    from .saving.destination import destination, refuse_taken

    target = destination(quantized.kind, folder, filename)
    if if_exists == "error":
        refuse_taken(target, "The result is kept: with another name nothing is computed again.")
    spool = ensure_file(quantized, NodeProgress(node_id)).path
    return publish(spool, target, if_exists)
