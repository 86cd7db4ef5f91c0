"""Synthetic weights and input statistics with what matters for rounding: outliers and a decaying spectrum."""

import torch

from tpec.statistics.gradients import HeldGradients, run_shape

#: Rank of the dominant part added to random weights.
RANK = 16
#: Enough tokens for the engine to trust synthetic statistics as it would real ones.
TOKENS = 10_000_000


def generator(seed: int, device: torch.device | str) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)


def weight(shape: tuple[int, int], seed: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """A bf16 [out, in] weight: normal values of standard deviation in**-0.5, a low-rank part, and rare outliers."""
    random = generator(seed, device)
    rows, columns = shape
    std = columns**-0.5
    result = torch.randn(shape, generator=random, device=device).mul_(std)
    left = torch.randn(rows, RANK, generator=random, device=device)
    right = torch.randn(RANK, columns, generator=random, device=device)
    fading = torch.arange(1, RANK + 1, device=device) ** -0.5
    result.addmm_(left * fading, right, alpha=0.1 * std)
    count = max(1, result.numel() // 10_000)
    at = torch.randint(result.numel(), (count,), generator=random, device=device)
    result.view(-1)[at] *= 6
    return result.to(torch.bfloat16)


def outputs(rows: int, seed: int, device: torch.device | str = "cpu") -> HeldGradients:
    """Statistics of output gradients like `gram`, for each run of rows; on `device`, which real ones are not."""
    runs, size = run_shape(rows)
    grams = [gram(size, seed * runs + run, device) for run in range(runs)]
    return HeldGradients(torch.stack(grams), rows, TOKENS)


def gram(width: int, seed: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """A float32 [width, width] E[x x^T]: power-law energies in random directions, a few very loud channels."""
    random = generator(seed, device)
    rank = max(1, width // 4)
    factor = torch.randn(width, rank, generator=random, device=device)
    factor *= torch.arange(1, rank + 1, device=device) ** -0.5
    loud = torch.randn(width, generator=random, device=device).mul_(0.5).exp_()
    loud[torch.randint(width, (max(1, width // 200),), generator=random, device=device)] *= 8
    factor *= loud[:, None]
    result = factor @ factor.T
    result.diagonal().add_(0.5 * loud.square())
    return result
