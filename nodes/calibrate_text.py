"""TPECCalibrateText: encode some prompts and remember what the text encoder's layers see."""

from comfy_api.latest import io, ui

from ..tpec.errors import TpecError
from .calibration.text_prompts import DEFAULT_PROMPTS
from .schema.sockets import CALIBRATION, CATEGORY


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
        from .calibration.conditioning import prompt_lines
        from .calibration.encoding import calibrate_encoder
        from .host.progress import NodeProgress

        lines = prompt_lines(prompts)
        if not lines:
            raise TpecError("There is no prompt to encode: enter one per line.")
        handle = calibrate_encoder(clip, lines, NodeProgress(cls.hidden.unique_id))
        return io.NodeOutput(handle, handle.summary, ui=ui.PreviewText(handle.summary))
