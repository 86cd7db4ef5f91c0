"""TPECQuantizeFP8: compute the FP8 file, complete, in ComfyUI's temp folder."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..tpec.errors import TpecError
from ..tpec.settings import FORMATS, MATMULS, METHODS, Settings, part_names
from .calibration.presets import AUTO, CHOICES
from .host.memory import device_choices, torch_devices
from .host.paths import source_names, source_path
from .schema.sockets import CALIBRATION, CATEGORY, CHECKPOINT, QUANTIZED

if TYPE_CHECKING:
    from .handles import CalibrationHandle, CheckpointHandle

_NONE = "none"


class TPECQuantizeFP8(io.ComfyNode):
    #: Results from the cache show their text as well; older versions of ComfyUI know no such field of the schema.
    HAS_INTERMEDIATE_OUTPUT = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECQuantizeFP8",
            display_name="TPEC Quantize FP8",
            category=CATEGORY,
            description="Rounds the model's Linear weights to FP8 so that the errors that matter cancel. "
                        "Half the size; the result is a complete file in ComfyUI's temp folder until it is saved.",
            search_aliases=[
                "quantize model", "fp8", "convert fp8", "convert model", "convert to fp8", "scaled fp8", "fp8 e4m3",
                "compress", "compress model", "smaller model", "shrink model", "reduce vram", "reduce size",
                "low vram", "half size", "tpec",
            ],
            inputs=[
                CHECKPOINT.Input("checkpoint"),
                CALIBRATION.Input("calibration", optional=True,
                                  tooltip="What the model's own activations look like: halves the error or better."),
                io.Combo.Input("method", options=list(METHODS), default=Settings.method,
                               tooltip="tpec corrects errors while rounding; nearest is plain rounding, to compare."),
                io.Combo.Input("format", options=list(FORMATS), default=Settings.format,
                               tooltip="universal loads in every ComfyUI since 2024; comfy_quant in 0.4 and later; "
                                       "scaled_fp8 is the older form alone."),
                io.Combo.Input("matmul", options=list(MATMULS), default=Settings.matmul,
                               tooltip="full_precision keeps the quality. fp8 lets GPUs multiply in FP8 if they can, "
                                       "which is faster but rounds the inputs as well; auto does so in the layers "
                                       "where that costs least, which takes a calibration."),
                io.Boolean.Input("keep_distillation", default=Settings.keep_distillation, optional=True,
                                 tooltip="Chroma: keep the distilled guidance layers as they are."),
                io.Int.Input("top_k", default=0, min=0, max=4096, optional=True, advanced=True,
                             tooltip="Principal components corrected without calibration. 0: the method's own number."),
                io.Int.Input("num_iter", default=-1, min=-1, max=1000, optional=True, advanced=True,
                             tooltip="Sweeps that improve the rounding afterwards. -1: the method's own."),
                io.String.Input("include", default="", optional=True, advanced=True,
                                tooltip="Regular expression: layers to quantize besides the family's own."),
                io.String.Input("exclude", default="", optional=True, advanced=True,
                                tooltip="Regular expression: layers to keep as they are."),
                io.Combo.Input("device", options=device_choices(), default="auto", optional=True, advanced=True,
                               tooltip="Where to compute. auto is ComfyUI's own device; several GPUs share "
                                       "the layers."),
                # Last, so that values of saved workflows keep their places.
                io.Boolean.Input("keep_nonfinite", default=Settings.keep_nonfinite, optional=True, advanced=True,
                                 tooltip="Copy biases, norms and other kept parameters that hold NaN or infinite "
                                         "values as they are, instead of refusing the file."),
                io.Float.Input("keep_quality", default=0.0, min=0.0, max=90.0, step=0.5, optional=True,
                               tooltip="Extra size in percent, spent on keeping the layers that matter most in high "
                                       "precision. They are measured first; the report says what it bought."),
                io.Combo.Input("like", options=[_NONE, *source_names()], default=_NONE, optional=True, advanced=True,
                               tooltip="A quantized file of the same model, from anywhere: the layers that it has in "
                                       "FP8 become FP8, and no others."),
                io.Combo.Input("calibrate", options=CHOICES, default=AUTO, optional=True,
                               tooltip="auto: without a calibration the model first samples a little from noise, with "
                                       "no prompt, and is rounded for what its layers then see: about half the error. "
                                       "never: rounded by its weights alone."),
                io.String.Input("part", default="", optional=True, advanced=True,
                                tooltip="Text encoders of a full checkpoint to quantize as well, separated by commas: "
                                        "t5xxl. Whatever is not named stays as it is."),
                io.Boolean.Input("only_part", default=Settings.only_part, optional=True, advanced=True,
                                 tooltip="Of a full checkpoint, write the diffusion model alone, with the parts named "
                                         "above: a file for diffusion_models."),
                io.Boolean.Input("embeddings", default=Settings.embeddings, optional=True, advanced=True,
                                 tooltip="Make a text encoder's token embedding FP8 as well, with one scale. Needs the "
                                         "format comfy_quant."),
            ],
            outputs=[QUANTIZED.Output("quantized"), io.String.Output("report")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, device: str | None = None, like: str | None = None, include: str | None = None,
                        exclude: str | None = None) -> bool | str:
        from ..tpec.patterns import check_pattern

        # In place of the combos' own check, so that prompts can name several devices. What is linked is None here.
        texts = {"device": device, "like": like, "include": include, "exclude": exclude}
        if wrong := [name for name, value in texts.items() if not isinstance(value, (str, type(None)))]:
            return f"{' and '.join(wrong)} must be text."
        try:
            check_pattern("include", include or "")
            check_pattern("exclude", exclude or "")
            torch_devices("auto" if device is None else device)
            _like(like)
        except TpecError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, checkpoint: "CheckpointHandle", method: str, format: str, matmul: str,
                calibration: "CalibrationHandle | None" = None, keep_distillation: bool = Settings.keep_distillation,
                top_k: int = 0, num_iter: int = -1, include: str = "", exclude: str = "",
                device: str = "auto", keep_nonfinite: bool = Settings.keep_nonfinite,
                keep_quality: float = Settings.keep_quality, like: str = _NONE, calibrate: str = AUTO,
                part: str = "", only_part: bool = Settings.only_part,
                embeddings: bool = Settings.embeddings) -> io.NodeOutput:
        from .calibration.automatic import with_own_calibration
        from .handles import QuantizeRequest
        from .host.progress import NodeProgress
        from .host.results import plan_of, quantized

        settings = Settings(
            family=checkpoint.family, method=method, format=format, matmul=matmul, keep_distillation=keep_distillation,
            top_k=top_k or None, num_iter=None if num_iter < 0 else num_iter, include=include, exclude=exclude,
            keep_nonfinite=keep_nonfinite, keep_quality=keep_quality, part=part_names(part), only_part=only_part,
            embeddings=embeddings)
        request = QuantizeRequest(checkpoint, settings, device, calibration, _like(like))
        progress, note = NodeProgress(cls.hidden.unique_id), ""
        if calibrate == AUTO:
            request, note = with_own_calibration(request, plan_of(request), progress)
        handle = quantized(request, progress)
        if note:
            handle = replace(handle, notes=(note, *handle.notes))
        return io.NodeOutput(handle, handle.text(), ui=ui.PreviewText(handle.summary()))


def _like(name: str | None) -> Path | None:
    """The file that the combo names. Raises TpecError when it is gone."""
    return None if name in (None, _NONE) else source_path(name)
