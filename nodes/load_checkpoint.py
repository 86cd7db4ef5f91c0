"""TPECLoadCheckpoint: choose a model file and see what quantizing it would do."""

import os

from comfy_api.latest import io

from ..tpec.checkpoint import open_checkpoint
from ..tpec.errors import TpecError
from ..tpec.estimate import describe_needs
from ..tpec.families import family_names
from ..tpec.plan import make_plan
from ..tpec.settings import Settings
from .bridge import torch_devices
from .handles import CATEGORY, CHECKPOINT, CheckpointHandle
from .paths import source_names, source_path
from .structure import structure_of


class TPECLoadCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECLoadCheckpoint",
            display_name="Load Checkpoint For Quantize",
            category=CATEGORY,
            description="Reads the header of a bf16, fp16 or fp32 model file and says what it is. "
                        "The weights stay on disk until they are quantized, layer by layer.",
            search_aliases=["quantize", "fp8", "tpec"],
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
    def validate_inputs(cls, checkpoint: str) -> bool | str:
        try:
            source_path(checkpoint)
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
        opened = open_checkpoint(source_path(checkpoint))
        handle = CheckpointHandle(opened, family, structure_of(opened.tensors, opened.metadata))
        return io.NodeOutput(handle, describe(handle))


def describe(handle: CheckpointHandle) -> str:
    """What the engine would do with default settings, or why it cannot."""
    try:
        plan = make_plan(handle.checkpoint, Settings(family=handle.family), handle.structure)
    except TpecError as error:
        # Not the end yet: the quantize node's include pattern makes unknown layouts possible.
        return f"{handle.checkpoint.name}: not possible with default settings. {error}"
    return f"{plan.summary()}\n{describe_needs(plan, torch_devices('auto')[0])}"
