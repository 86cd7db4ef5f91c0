"""TPECCalibrate: sample a few pictures and remember what the model's layers see."""

import torch
from comfy_api.latest import io, ui

from ..tpec.collect import Collector
from ..tpec.outputs import OutputStats
from .backward import with_gradients
from .bridge import NodeProgress
from .collect import Layers, calibrate, linear_layers, plan_for
from .handles import CALIBRATION, CATEGORY, CalibrationHandle
from .sampling import Job, Progress, job_inputs, sample


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
                        "Quantizing with them halves the error or better.",
            search_aliases=["calibrate", "calibration", "quantize", "better fp8", "quantization quality", "tpec"],
            inputs=[
                io.Model.Input("model", tooltip="The original model, not a quantized one."),
                *job_inputs(),
                io.Int.Input("runs", default=8, min=1, max=1000,
                             tooltip="Samplings, each with the next seed. 8 is good, 32 is better."),
                CALIBRATION.Input("calibration", optional=True, tooltip="An earlier calibration to add to."),
                io.Boolean.Input("sensitivity", default=False, optional=True,
                                 tooltip="Also run the model backwards now and then, to learn which errors the result "
                                         "feels. A good deal better, about twice the time, more VRAM."),
            ],
            outputs=[CALIBRATION.Output("calibration_out", display_name="calibration"), io.String.Output("summary")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, positive: list, negative: list, latent_image: dict, seed: int, steps: int, cfg: float,
                sampler_name: str, scheduler: str, runs: int, calibration: CalibrationHandle | None = None,
                sensitivity: bool = False) -> io.NodeOutput:
        job = Job(positive, negative, latent_image, steps, cfg, sampler_name, scheduler)
        layers = linear_layers(model.model.diffusion_model)
        plan = plan_for(layers, model, sensitivity)
        bar = Progress(model, cls.hidden.unique_id, len(plan.passes) * runs * steps)
        progress = NodeProgress(cls.hidden.unique_id)

        def sample_all(patcher) -> None:
            for run in range(runs):
                def on_step(step: int, x0: torch.Tensor, run: int = run) -> None:
                    bar.step(x0)
                    progress.text(f"run {run + 1} of {runs}, step {step + 1} of {steps}")

                sample(patcher, job, (seed + run) % 2**64, on_step)

        def run_all(inputs: Collector, watched: Layers) -> dict[str, OutputStats]:
            if sensitivity:
                return with_gradients(model, watched, inputs, plan.device, sample_all)
            sample_all(model)
            return {}

        handle = calibrate(plan, layers, type(model.model).__name__, runs, run_all, calibration, progress)
        return io.NodeOutput(handle, handle.summary, ui=ui.PreviewText(handle.summary))
