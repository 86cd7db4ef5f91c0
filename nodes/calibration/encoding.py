"""From a text encoder to a calibration: some texts are encoded while its layers are watched."""

from collections.abc import Sequence

import comfy.model_management as memory
import torch

from ...tpec.statistics.gradients import GradientStats
from ..handles import CalibrationHandle
from ..host.progress import NodeProgress
from .calibrating import calibrate, linear_layers, plan_for, refuse_quantized


def calibrate_encoder(clip, texts: Sequence[str], progress: NodeProgress) -> CalibrationHandle:
    """Statistics of a CLIP's layers from encoding each of `texts`. Raises TpecError for a quantized one."""
    layers = text_layers(clip.cond_stage_model)
    refuse_quantized(layers)

    def encode_all(*_: object) -> dict[str, GradientStats]:
        for index, text in enumerate(texts):
            memory.throw_exception_if_processing_interrupted()
            progress.part(index, len(texts), f"prompt {index + 1} of {len(texts)}")
            clip.encode_from_tokens(clip.tokenize(text))
        return {}

    plan = plan_for(layers, clip.patcher)
    return calibrate(plan, layers, clip.patcher, type(clip.cond_stage_model).__name__, len(texts), encode_all, None,
                     progress)


def text_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Linear layers by the names they have in the encoder's own file, for every encoder that `model` combines."""
    layers: dict[str, torch.nn.Module] = {}
    for name, part in model.named_modules():
        if name.endswith("transformer") and ".transformer." not in name:
            layers = {**linear_layers(part), **layers}
    return layers or linear_layers(model)
