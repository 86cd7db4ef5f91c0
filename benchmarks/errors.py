"""Error measures of a quantized checkpoint against its original, layer by layer."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from .common import geometric_mean

FP8 = torch.float8_e4m3fn
SCALES = (".weight_scale", ".scale_weight")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, in memory of their own."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict


def dequantized(tensors: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    """A layer's weight in float64: FP8 times its scale under either name, anything else as it is."""
    weight = tensors[f"{layer}.weight"]
    if weight.dtype != FP8:
        return weight.double()
    scale = next(tensors[layer + name] for name in SCALES if layer + name in tensors)
    return weight.double() * scale.double().reshape(-1)[0]


def round_to_nearest(weight: torch.Tensor) -> torch.Tensor:
    """The reference: one absmax scale (float32), round to nearest e4m3, as float64."""
    scale = weight.abs().max().float() / torch.finfo(FP8).max
    return (weight.float() / scale).to(FP8).double() * scale.double()


class Reference:
    """An original layer and what all methods are measured against."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None,
                 gram: torch.Tensor | None = None, mean: torch.Tensor | None = None) -> None:
        self.weight = weight.double()
        self.bias = bias.double() if bias is not None else None
        self.gram, self.mean = gram, mean
        left, sigma, right = torch.linalg.svd(self.weight, full_matrices=False)
        self._left, self._right, self._sigma = left[:, 0], right[0], sigma[0]
        self._energy = (self.weight @ gram * self.weight).sum() if gram is not None else None

    def weight_error(self, error: torch.Tensor) -> float:
        """||Q - W|| / ||W||."""
        return (error.norm() / self.weight.norm()).item()

    def principal(self, error: torch.Tensor) -> float:
        """|u1^T (Q - W) v1| / sigma1, the published objective, by exact SVD."""
        return ((self._left @ error @ self._right).abs() / self._sigma).item()

    def output_error(self, error: torch.Tensor, bias_change: torch.Tensor | None = None) -> float:
        """||(Q - W) X + (b' - b)|| / ||W X|| over the held-out inputs."""
        if self.gram is None:
            return float("nan")
        wrong = (error @ self.gram * error).sum()
        if bias_change is not None:
            wrong = wrong + 2 * bias_change @ (error @ self.mean) + bias_change.square().sum()
        return (wrong.clamp(min=0) / self._energy).sqrt().item()


@dataclass(frozen=True)
class Errors:
    """Geometric means over a model's layers; `output` is NaN without activations."""

    weight: float
    output: float
    output_with_bias: float
    principal: float


def reference_errors(references: dict[str, Reference]) -> Errors:
    """Plain round-to-nearest with an absmax scale, biases untouched."""
    return _mean([(ref, round_to_nearest(ref.weight) - ref.weight, None) for ref in references.values()])


def file_errors(path: Path, references: dict[str, Reference]) -> Errors:
    """A quantized file against the original layers."""
    tensors = read_tensors(path)
    rows = []
    for layer, ref in references.items():
        change = tensors[f"{layer}.bias"].double() - ref.bias if ref.bias is not None else None
        rows.append((ref, dequantized(tensors, layer) - ref.weight, change))
    return _mean(rows)


def _mean(rows: list[tuple[Reference, torch.Tensor, torch.Tensor | None]]) -> Errors:
    return Errors(
        geometric_mean(ref.weight_error(error) for ref, error, _ in rows),
        geometric_mean(ref.output_error(error) for ref, error, _ in rows),
        geometric_mean(ref.output_error(error, change) for ref, error, change in rows),
        geometric_mean(ref.principal(error) for ref, error, _ in rows))
