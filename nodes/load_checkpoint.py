"""TPECLoadCheckpoint: choose a model file and see what quantizing it would do."""

import os
from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..tpec.errors import TpecError
from ..tpec.model.order import family_names
from ..tpec.settings import Settings
from .host.memory import torch_devices
from .host.paths import source_names, source_path
from .schema.sockets import CATEGORY, CHECKPOINT

if TYPE_CHECKING:
    from .handles import CheckpointHandle


class TPECLoadCheckpoint(io.ComfyNode):
    #: As in TPECQuantizeFP8.
    HAS_INTERMEDIATE_OUTPUT = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECLoadCheckpoint",
            display_name="Load Checkpoint For Quantize",
            category=CATEGORY,
            description="Reads the header of a bf16, fp16 or fp32 model file and says what it is. "
                        "The weights stay on disk until they are quantized, layer by layer.",
            search_aliases=[
                "load model to quantize", "quantize", "fp8", "convert fp8", "compress model", "smaller model",
                "shrink model", "reduce vram", "tpec",
            ],
            inputs=[
                io.Combo.Input("checkpoint", options=source_names(),
                               tooltip="A safetensors file of diffusion_models, checkpoints or text_encoders."),
                io.Combo.Input("family", options=list(family_names()), default="auto",
                               tooltip="The model's layout. auto recognises it from the names in the file."),
            ],
            outputs=[
                CHECKPOINT.Output("checkpoint_out", display_name="checkpoint"),
                io.String.Output("summary", display_name="summary"),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str | None = None) -> bool | str:
        """A wrong file is refused here, by its header alone, as far as no setting of the quantize node can help."""
        if checkpoint is None:  # linked: not known yet
            return True
        if not checkpoint or not isinstance(checkpoint, str):  # prompts can hold anything
            return "Choose a model file first."
        from ..tpec.files.checkpoint import open_checkpoint
        from ..tpec.model.plan import make_plan

        try:
            make_plan(open_checkpoint(source_path(checkpoint)), Settings(include="."))
        except TpecError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, family: str) -> str:
        # Changed bytes under the same name must not meet a header that was read before.
        state = os.stat(source_path(checkpoint))
        return f"{checkpoint}|{family}|{state.st_size}|{state.st_mtime_ns}"

    @classmethod
    def execute(cls, checkpoint: str, family: str) -> io.NodeOutput:
        from ..tpec.files.checkpoint import open_checkpoint
        from ..tpec.model.diffusers import in_comfyui_layout
        from .handles import CheckpointHandle
        from .host.structure import structure_of

        opened = in_comfyui_layout(open_checkpoint(source_path(checkpoint)))
        handle = CheckpointHandle(opened, family, structure_of(opened.tensors, opened.metadata))
        text = describe(handle)
        return io.NodeOutput(handle, text, ui=ui.PreviewText(text))


def describe(handle: "CheckpointHandle") -> str:
    """What the engine would do with default settings, or why it cannot."""
    from ..tpec.model.plan import make_plan
    from ..tpec.run.memory import describe_needs

    try:
        plan = make_plan(handle.checkpoint, Settings(family=handle.family), handle.structure)
    except TpecError as error:
        # Not the end yet: the quantize node's include pattern makes unknown layouts possible.
        return f"{handle.checkpoint.name}: not possible with default settings. {error}"
    smaller = 100 * (1 - plan.output_nbytes / handle.checkpoint.nbytes)
    said = f"{plan.why.partition(':')[0]}: {smaller:.0f} % smaller as FP8"
    return f"{said}\n{plan.summary()}\n{describe_needs(plan, torch_devices('auto')[0])}"
