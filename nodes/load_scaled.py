"""TPECLoadScaledFP8: use the result without saving it."""

from typing import TYPE_CHECKING

import comfy.sd
import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..tpec.errors import TpecError
from .schema.sockets import CATEGORY, QUANTIZED

if TYPE_CHECKING:
    from .handles import QuantizedHandle

PARTS = ("MODEL", "CLIP", "VAE")


class TPECLoadScaledFP8(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECLoadScaledFP8",
            display_name="Load Scaled FP8",
            category=CATEGORY,
            description="Loads the quantized file through ComfyUI's own loaders before, or instead of, saving it. "
                        "It has the outputs that the file holds: a diffusion model MODEL, a text encoder CLIP, "
                        "a checkpoint what it contains. Other FP8 files load with Load Diffusion Model.",
            search_aliases=["use quantized model", "preview quantized", "load quantized", "tpec"],
            inputs=[QUANTIZED.Input("quantized")],
            outputs=[io.Model.Output("model"), io.Clip.Output("clip"), io.Vae.Output("vae")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, quantized: "QuantizedHandle") -> io.NodeOutput:
        from .host.links import linked_outputs
        from .host.progress import NodeProgress
        from .host.results import ensure_file
        from .saving.temp_files import keep_with

        handle = ensure_file(quantized, NodeProgress(cls.hidden.unique_id))
        parts = _load(handle)
        for part in parts:
            if part is not None:
                # ComfyUI may read weights again later.
                keep_with(getattr(part, "patcher", part).model, handle.temp)
        wanted = linked_outputs(cls.hidden.dynprompt, cls.hidden.unique_id)
        for index, part in enumerate(parts):
            if part is None and index in wanted:
                raise TpecError(_absent(handle, index))
        # A later prompt may link an output while this node's result comes from the cache.
        return io.NodeOutput(*(ExecutionBlocker(_absent(handle, index)) if part is None else part
                               for index, part in enumerate(parts)))


def _absent(handle: "QuantizedHandle", index: int) -> str:
    return (f"{handle.path.name} is a file of the kind {handle.kind} and holds no {PARTS[index]}: "
            f"take {PARTS[index]} from another loader.")


def _load(handle: "QuantizedHandle") -> tuple[object | None, object | None, object | None]:
    """MODEL, CLIP and VAE of the file, None for those it does not hold."""
    path = str(handle.path)
    embeddings = folder_paths.get_folder_paths("embeddings")
    if handle.kind == "diffusion_models":
        return comfy.sd.load_diffusion_model(path), None, None
    if handle.kind == "text_encoders":
        # T5-XXL alone is Chroma's text encoder; other models combine it with CLIP in the stock loaders.
        clip = comfy.sd.load_clip([path], embedding_directory=embeddings, clip_type=comfy.sd.CLIPType.CHROMA)
        return None, clip, None
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(path, embedding_directory=embeddings)
    return model, _or_none(clip), _or_none(vae)


def _or_none(part):
    """ComfyUI hands out empty shells for what a checkpoint lacks."""
    if part is None or getattr(part, "first_stage_model", True) is None:
        return None
    return part
