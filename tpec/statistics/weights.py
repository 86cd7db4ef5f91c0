"""A few of a model's weights, kept with a calibration: whether a model to quantize is the one that was calibrated.

They are compared with a tolerance, so that neither dtype nor device makes a difference.
"""

from collections.abc import Callable, Iterable, Mapping

import torch

#: Values of one layer, rounded to few digits, by the layer's name.
Samples = Mapping[str, tuple[float, ...]]

#: So many layers are looked at, and so many values of each.
_LAYERS = 32
_VALUES = 16
#: Of the largest value: more than rounding to bfloat16 changes, less than a change worth mention.
_TOLERANCE = 0.01


def sampled_layers(names: Iterable[str]) -> list[str]:
    """At most 32 of the layers, evenly over the model."""
    ordered = sorted(names)
    step = max(1, -(-len(ordered) // _LAYERS))
    return ordered[::step]


def sampled_span(shape: tuple[int, ...]) -> tuple[int, int]:
    """Where the looked-at values of a weight [out, in] begin, counted row by row, and how many they are."""
    return (shape[0] // 2) * shape[1], min(_VALUES, shape[1])


def sample_weights(names: Iterable[str], weight: Callable[[str], torch.Tensor]) -> dict[str, tuple[float, ...]]:
    """Values of the layers' weights [out, in], which `weight` gives by name."""
    found = {}
    for name in names:
        matrix = weight(name)
        begin, count = sampled_span(tuple(matrix.shape))
        found[name] = rounded(matrix[begin // matrix.shape[1], :count])
    return found


def rounded(values: torch.Tensor) -> tuple[float, ...]:
    """As they are kept: four digits."""
    return tuple(float(f"{value:.4g}") for value in values.detach().float().cpu().tolist())


def other_weights(kept: Samples, found: Samples) -> list[str]:
    """Those of the layers in both whose values differ."""
    return [name for name, values in kept.items() if name in found and _differ(values, found[name])]


def _differ(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    tolerance = _TOLERANCE * max(map(abs, (*one, *other)), default=0.0)
    return len(one) != len(other) or any(abs(a - b) > tolerance for a, b in zip(one, other, strict=True))
