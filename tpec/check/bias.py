"""Whether a layer's rounding explains what was added to its bias; the mathematics is in docs/method.md, section 10."""

import torch

#: Iterates of conjugate gradients that are tried.
_STEPS = 8
#: Products of float32 are trusted to this share of their factors' norms.
_EXACT = 1e-5


def mean_length(errors: torch.Tensor, change: torch.Tensor, slack: torch.Tensor) -> float:
    """A lower bound of |x| over all x [in] with -E x = change, up to +-slack.

    errors: E = Q - W [out, in], any floating dtype. change [out]: what was added to the bias. slack [out], not
    negative: how far storing may have moved each value. 0 if slack alone explains the change, infinite if no x does.
    """
    size = errors.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    # In units of the largest error, so that float32 holds the squares.
    matrix = (errors / size).float()
    change, slack = (change / size).float(), (slack / size).float()
    rows = matrix.norm(dim=1)
    whole = rows.norm()
    length = _ratio(change.abs() - slack, rows).max().item()
    total, reach = torch.zeros_like(change), torch.zeros_like(matrix[0])
    left = direction = change
    for _ in range(_STEPS):
        image = matrix.mT @ direction
        energy, strength = left.square().sum(), image.square().sum()
        if not energy > 0 or not strength > 0:
            break
        step = energy / strength
        total, reach = total + step * direction, reach + step * image
        doubt = _EXACT * total.norm()
        certain = total @ change - total.abs() @ slack - doubt * change.norm()
        length = max(length, _ratio(certain, reach.norm() + doubt * whole).item())
        left = left - step * (matrix @ image)
        direction = left + direction * (left.square().sum() / energy)
    return length


def _ratio(amount: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """How many units an amount takes; none for nothing or less."""
    return torch.where(amount > 0, amount / unit, 0.0)
