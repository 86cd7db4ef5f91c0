"""How far two models' results are apart, in numbers and in words."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from comfy.nested_tensor import NestedTensor

from ..host.sampling import Job, sample

#: PSNR in dB from which on a sentence holds: people see errors of a few grey levels only side by side.
_VERDICTS = (
    (45.0, "No visible difference"),
    (38.0, "The same pictures: differences are hard to see even side by side"),
    (30.0, "The same pictures with small differences"),
    (22.0, "Similar pictures with visibly different details"),
    (-math.inf, "Different pictures"),
)


@dataclass(frozen=True)
class Runs:
    """One model's latents by run, and by run and step its idea of the result then, as flat float32 vectors."""

    latents: list[torch.Tensor]
    guesses: list[list[torch.Tensor]]


def run_model(model, job: Job, seeds: Sequence[int], on_step: Callable[[torch.Tensor], None],
              on_run: Callable[[int], None]) -> Runs:
    """Sample once per seed."""
    runs = Runs([], [])
    for index, seed in enumerate(seeds):
        on_run(index)
        guesses: list[torch.Tensor] = []

        def watch(_: int, x0: torch.Tensor, guesses: list[torch.Tensor] = guesses) -> None:
            guesses.append(flat(x0))
            on_step(x0)

        runs.latents.append(sample(model, job, seed, watch))
        runs.guesses.append(guesses)
    return runs


@dataclass(frozen=True)
class Distance:
    """Means over runs: of the relative error, of the PSNR in latent space (dB), and of the error by step."""

    error: float
    psnr: float
    curve: list[float]

    @classmethod
    def between(cls, value: Runs, reference: Runs) -> "Distance":
        pairs = [(flat(one), flat(other)) for one, other in zip(value.latents, reference.latents, strict=True)]
        steps = [[relative_error(one, other) for one, other in zip(*guesses, strict=False)]
                 for guesses in zip(value.guesses, reference.guesses, strict=True)]
        return cls(mean([relative_error(*pair) for pair in pairs]), mean_psnr([psnr(*pair) for pair in pairs]),
                   [mean(errors) for errors in zip(*steps, strict=False)])

    def sentences(self, pixels: Sequence[float], other: "Distance | None" = None) -> list[str]:
        """The verdict, then the numbers; `pixels` are PSNRs (dB) of pictures, `other` the reference's distance."""
        lines = [f"{verdict(mean_psnr(pixels) if pixels else self.psnr)}."]
        if pixels:
            lowest = f", the lowest {min(pixels):.1f} dB" if len(pixels) > 1 else ""
            lines.append(f"PSNR {mean_psnr(pixels):.1f} dB in pixels over {len(pixels)} "
                         f"picture{'s' if len(pixels) > 1 else ''}{lowest}.")
        lines.append(f"B is {100 * self.error:.3f} % away from A: PSNR {self.psnr:.1f} dB in latent space"
                     + ("." if pixels else " (connect a VAE to judge pictures)."))
        if other is not None and self.error > 0:
            lines.append(f"The reference is {100 * other.error:.3f} % away: {other.error / self.error:.2f} x as far.")
        return lines


def verdict(decibels: float) -> str:
    return next(words for least, words in _VERDICTS if decibels >= least)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def mean_psnr(values: Sequence[float]) -> float:
    """The mean in dB, of equal results as 100 dB; infinite when all are equal."""
    return math.inf if min(values) == math.inf else mean([min(value, 100.0) for value in values])


def parts_of(latent: torch.Tensor) -> list[torch.Tensor]:
    """A latent's parts: one as a rule, several where video and sound are sampled together."""
    return list(latent.unbind()) if getattr(latent, "is_nested", False) else [latent]


def join(latents: Sequence[torch.Tensor]) -> torch.Tensor:
    """Several runs' latents as one batch."""
    parts = [torch.cat(part) for part in zip(*map(parts_of, latents), strict=True)]
    return parts[0] if len(parts) == 1 else NestedTensor(parts)


def flat(latent: torch.Tensor) -> torch.Tensor:
    """All values of a latent, also of one in several parts, as one float32 vector on the CPU."""
    return torch.cat([part.flatten().float().cpu() for part in parts_of(latent)])


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return ((value - reference).norm() / reference.norm()).item()


def psnr(value: torch.Tensor, reference: torch.Tensor) -> float:
    """In dB against the reference's range; infinite when both are equal."""
    noise = (value - reference).square().mean().item()
    span = (reference.max() - reference.min()).item()
    return math.inf if noise == 0 else 10 * math.log10(span * span / noise)
