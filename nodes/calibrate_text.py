"""TPECCalibrateText: encode some prompts and remember what the text encoder's layers see."""

import comfy.model_management
import torch
from comfy_api.latest import io, ui

from ..tpec.errors import TpecError
from ..tpec.statistics.gradients import GradientStats
from .calibration.calibrating import calibrate, linear_layers, plan_for, refuse_quantized
from .calibration.conditioning import prompt_lines
from .calibration.prompts import DEFAULT_PROMPTS
from .handles import CALIBRATION, CATEGORY
from .host.progress import NodeProgress


class TPECCalibrateText(io.ComfyNode):
    #: As in TPECQuantizeFP8.
    HAS_INTERMEDIATE_OUTPUT = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECCalibrateText",
            display_name="TPEC Calibrate Text Encoder",
            category=CATEGORY,
            description="Encodes prompts with the original text encoder and collects statistics of what its layers "
                        "really see, for quantizing it.",
            search_aliases=[
                "calibrate", "calibration", "quantize text encoder", "t5 fp8", "compress text encoder", "tpec",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="The original text encoder, not a quantized one."),
                io.String.Input("prompts", multiline=True, default=DEFAULT_PROMPTS,
                                tooltip="One prompt per line. Short and long, plain and poetic: as in real use."),
            ],
            outputs=[CALIBRATION.Output("calibration"), io.String.Output("summary")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, prompts: str) -> io.NodeOutput:
        lines = prompt_lines(prompts)
        if not lines:
            raise TpecError("There is no prompt to encode: enter one per line.")
        progress = NodeProgress(cls.hidden.unique_id)
        layers = text_layers(clip.cond_stage_model)
        refuse_quantized(layers)

        def encode_all(*_: object) -> dict[str, GradientStats]:
            for index, line in enumerate(lines):
                comfy.model_management.throw_exception_if_processing_interrupted()
                progress.part(index, len(lines), f"prompt {index + 1} of {len(lines)}")
                clip.encode_from_tokens(clip.tokenize(line))
            return {}

        plan = plan_for(layers, clip.patcher)
        handle = calibrate(plan, layers, type(clip.cond_stage_model).__name__, len(lines), encode_all, None, progress)
        return io.NodeOutput(handle, handle.summary, ui=ui.PreviewText(handle.summary))


def text_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Linear layers by the names they have in the encoder's own file, for every encoder that `model` combines."""
    layers: dict[str, torch.nn.Module] = {}
    for name, part in model.named_modules():
        if name.endswith("transformer") and ".transformer." not in name:
            layers = {**linear_layers(part), **layers}
    return layers or linear_layers(model)
