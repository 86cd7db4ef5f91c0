"""Runs of ComfyUI's own sampler with a callback per step, for calibrating and comparing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import comfy.sample
import comfy.utils
import latent_preview
import torch

#: Called after each step with its index and the model's present idea of the result.
OnStep = Callable[[int, torch.Tensor], None]

#: What a latent says beside its values of how large they are for a model.
LATENT_OPTIONS = ("downscale_ratio_spacial", "downscale_ratio_temporal")


@dataclass(frozen=True)
class Job:
    """What to sample; the inputs of ComfyUI's KSampler without the model and the seed."""

    positive: list
    negative: list
    latent: dict
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str


def sample(model, job: Job, seed: int, on_step: OnStep) -> torch.Tensor:
    """One run; the latent, on the CPU as a rule."""
    options = {name: job.latent[name] for name in LATENT_OPTIONS if name in job.latent}
    latent = comfy.sample.fix_empty_latent_channels(model, job.latent["samples"], **options)
    noise = comfy.sample.prepare_noise(latent, seed, job.latent.get("batch_index"))
    return comfy.sample.sample(
        model, noise, job.steps, job.cfg, job.sampler_name, job.scheduler, job.positive, job.negative, latent,
        noise_mask=job.latent.get("noise_mask"), callback=lambda step, x0, x, total: on_step(step, x0),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed)


def schedule_of(options: Mapping[str, object]) -> torch.Tensor | None:
    """The sigmas [steps + 1] of the sampling that `transformer_options` are of, None outside of one."""
    schedule = options.get("sample_sigmas")
    return schedule if isinstance(schedule, torch.Tensor) and len(schedule) > 1 else None


def steps_at(schedule: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Which steps of a schedule begin nearest to these sigmas [n]; samplers evaluate between them as well."""
    return (schedule[:-1, None] - sigmas[None]).abs().argmin(0)


class Progress:
    """The node's bar over all steps of several runs, with ComfyUI's preview pictures."""

    def __init__(self, model, node_id: str, steps: int) -> None:
        self._bar = comfy.utils.ProgressBar(steps, node_id=node_id)
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self._done = 0

    def step(self, x0: torch.Tensor) -> None:
        self._done += 1
        if getattr(x0, "is_nested", False):
            x0 = x0.unbind()[0]
        preview = self._previewer.decode_latent_to_preview_image("JPEG", x0) if self._previewer else None
        self._bar.update_absolute(self._done, preview=preview)
