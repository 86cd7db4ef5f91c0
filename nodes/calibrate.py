"""TPECCalibrate: sample a few pictures and remember what the model's layers see."""

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from .calibration.presets import CUSTOM, PRESET_NAMES, Preset
from .schema.sampling import sampler_inputs
from .schema.sockets import CALIBRATION, CATEGORY

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..tpec.statistics.gradients import GradientStats
    from ..tpec.statistics.watching import Collector
    from .calibration.calibrating import Layers
    from .calibration.latents import Size
    from .handles import CalibrationHandle
    from .host.sampling import Job


class TPECCalibrate(io.ComfyNode):
    #: As in TPECQuantizeFP8.
    HAS_INTERMEDIATE_OUTPUT = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECCalibrate",
            display_name="TPEC Calibrate",
            category=CATEGORY,
            description="Samples with the original model and collects statistics of what its layers really see. "
                        "Quantizing with them halves the error or better. Connect clip, and it takes prompts of its "
                        "own.",
            search_aliases=["calibrate", "calibration", "quantize", "better fp8", "quantization quality", "tpec"],
            inputs=[
                io.Model.Input("model", tooltip="The original model, not a quantized one."),
                *sampler_inputs(),
                io.Int.Input("runs", default=8, min=1, max=1000,
                             tooltip="Samplings, each with the next seed and prompt. 8 is good, 32 is better."),
                io.Conditioning.Input("positive", optional=True, tooltip="Instead of prompts."),
                io.Conditioning.Input("negative", optional=True, tooltip="Instead of the empty prompt."),
                io.Latent.Input("latent_image", optional=True,
                                tooltip="Size and count as in real use; its content is replaced by noise. Without it "
                                        "one of the model's usual size."),
                CALIBRATION.Input("calibration", optional=True, tooltip="An earlier calibration to add to."),
                io.Boolean.Input("sensitivity", default=False, optional=True,
                                 tooltip="Also run the model backwards now and then, to learn which errors the result "
                                         "feels. A good deal better, about twice the time, more VRAM."),
                io.Clip.Input("clip", optional=True,
                              tooltip="The model's text encoder, which may be a quantized one: makes positive and "
                                      "negative from prompts."),
                io.String.Input("prompts", multiline=True, default="", optional=True,
                                tooltip="For clip: one per line, each with a run of its own. Empty: a varied list for "
                                        "pictures, video or sound, whatever the model makes."),
                io.Combo.Input("preset", options=PRESET_NAMES, default=CUSTOM, optional=True,
                               tooltip="quick: 8 runs of 10 steps. good: 16 of 20. best: 32 of 20 with sensitivity. "
                                       "custom: runs, steps and sensitivity as set here."),
            ],
            outputs=[CALIBRATION.Output("calibration_out", display_name="calibration"), io.String.Output("summary")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str, runs: int,
                positive: list | None = None, negative: list | None = None, latent_image: dict | None = None,
                calibration: "CalibrationHandle | None" = None, sensitivity: bool = False, clip=None, prompts: str = "",
                preset: str = CUSTOM) -> io.NodeOutput:
        from .calibration.calibrating import calibrate, linear_layers, plan_for, refuse_quantized
        from .calibration.conditioning import make_conditionings
        from .calibration.latents import empty_latent, size_of
        from .calibration.prompt_free import Beside, beside, fitting
        from .calibration.weighing import weighed
        from .host.backward import with_gradients
        from .host.progress import NodeProgress
        from .host.sampling import Job, Progress, sample

        how = Preset.named(preset, runs, steps, sensitivity)
        layers = linear_layers(model.model.diffusion_model)
        refuse_quantized(layers)
        progress = NodeProgress(cls.hidden.unique_id)
        size = size_of(model) if latent_image is None else None
        latent = latent_image if size is None else empty_latent(model, size)
        lines = _lines(model, prompts, how.runs) if positive is None else []
        runs = max(how.runs, len(lines))
        given = make_conditionings(clip, lines, positive, negative, progress.counted("prompt"))
        jobs = [(Job(*given.of_run(run), latent, how.steps, cfg, sampler_name, scheduler), (seed + run) % 2**64)
                for run in range(runs)]
        more = beside(given, runs, jobs[0][0]) if calibration is None else Beside()
        plan = plan_for(layers, model, how.sensitivity)
        bar = Progress(model, cls.hidden.unique_id, len(plan.passes) * (runs + len(more.jobs)) * how.steps)

        def sample_these(patcher, jobs: "Sequence[tuple[Job, int]]", said: str) -> None:
            for number, (job, noise) in enumerate(jobs):
                def on_step(step: int, x0: "torch.Tensor", number: int = number) -> None:
                    bar.step(x0)
                    progress.text(f"{said} {number + 1} of {len(jobs)}, step {step + 1} of {how.steps}")

                sample(patcher, job, noise, on_step)

        unfit: list[str] = []

        def run_all(inputs: "Collector", watched: "Layers") -> "dict[str, GradientStats]":
            def sample_all(patcher) -> None:
                sample_these(patcher, jobs, "run")
                with inputs.beside(more.share), fitting(unfit):
                    sample_these(patcher, more.jobs, "run without a prompt")

            if how.sensitivity:
                return with_gradients(weighed(model, inputs), watched, inputs, plan.device, sample_all)
            sample_all(weighed(model, inputs))
            return {}

        handle = calibrate(plan, layers, model, type(model.model).__name__, runs, run_all, calibration, progress)
        text = "\n".join([handle.summary, *_notes(len(lines), len(more.jobs), unfit, size)])
        return io.NodeOutput(handle, text, ui=ui.PreviewText(text))


def _lines(model, prompts: str, runs: int) -> list[str]:
    """All of the user's prompts, or as many of the built-in ones as there are runs."""
    from .calibration.conditioning import prompt_lines
    from .calibration.latents import kind_of
    from .calibration.prompts import BUILT_IN

    return prompt_lines(prompts) or list(BUILT_IN[kind_of(model)][:runs])


def _notes(prompts: int, beside: int, unfit: list[str], size: "Size | None") -> list[str]:
    """What was not connected and so chosen here."""
    without = (f"not without a prompt beside them, which this model does not take: {unfit[0]}" if unfit else
               f"also {beside} times without a prompt, as few prompts show too little")
    plural = "s" if prompts > 1 else ""
    return [*([f"sampled with {prompts} prompt{plural}"] if prompts else []),
            *([without] if beside else []),
            *([f"at the model's usual size, {size.text()}"] if size is not None else [])]
