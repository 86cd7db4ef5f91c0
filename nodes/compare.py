"""TPECCompare: what quantizing a model changed in what it makes."""

import math

import torch
from comfy_api.latest import io, ui

from .bridge import NodeProgress
from .handles import CATEGORY
from .plot import line_plot
from .sampling import Job, Progress, job_inputs, sample


class TPECCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECCompare",
            display_name="Compare Model Outputs",
            category=CATEGORY,
            description="Samples with two models from the same noise and measures how far B ends up from A.",
            search_aliases=[
                "compare models", "psnr", "quantization error", "before and after", "a b test", "model difference",
                "fp8 quality", "tpec",
            ],
            inputs=[
                io.Model.Input("model_a", tooltip="The original."),
                io.Model.Input("model_b", tooltip="The quantized one."),
                *job_inputs(),
            ],
            outputs=[
                io.Float.Output("relative_error"),
                io.Float.Output("psnr", tooltip="In dB, in latent space, against the range of A's latent."),
                io.Image.Output("plot"),
                io.String.Output("summary"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model_a, model_b, positive: list, negative: list, latent_image: dict, seed: int, steps: int,
                cfg: float, sampler_name: str, scheduler: str) -> io.NodeOutput:
        job = Job(positive, negative, latent_image, steps, cfg, sampler_name, scheduler)
        progress = Progress(model_a, cls.hidden.unique_id, 2 * steps)
        guesses: list[torch.Tensor] = []
        differences: list[float] = []

        def watch_a(step: int, x0: torch.Tensor) -> None:
            guesses.append(flat(x0))
            progress.step(x0)

        def watch_b(step: int, x0: torch.Tensor) -> None:
            differences.append(relative_error(flat(x0), guesses[step]))
            progress.step(x0)

        text = NodeProgress(cls.hidden.unique_id).text
        text("sampling with A", always=True)
        a = flat(sample(model_a, job, seed, watch_a))
        text("sampling with B", always=True)
        b = flat(sample(model_b, job, seed, watch_b))
        error, decibels = relative_error(b, a), psnr(b, a)
        plot = line_plot("Difference of the predicted result, B against A",
                         {"relative error": differences}, "step")
        summary = (f"B differs from A by {100 * error:.3f} % of A's latent: PSNR {decibels:.1f} dB in latent space, "
                   f"after {steps} steps, cfg {cfg:g}, seed {seed}.")
        return io.NodeOutput(error, decibels, plot, summary, ui=ui.PreviewText(summary))


def flat(latent: torch.Tensor) -> torch.Tensor:
    """All values of a latent, also of one in several parts, as one float32 vector on the CPU."""
    parts = latent.unbind() if getattr(latent, "is_nested", False) else [latent]
    return torch.cat([part.flatten().float().cpu() for part in parts])


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return ((value - reference).norm() / reference.norm()).item()


def psnr(value: torch.Tensor, reference: torch.Tensor) -> float:
    """In dB against the reference's range; infinite when both are equal."""
    noise = (value - reference).square().mean().item()
    span = (reference.max() - reference.min()).item()
    return math.inf if noise == 0 else 10 * math.log10(span * span / noise)
