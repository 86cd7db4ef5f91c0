"""What a model's layers really see: second moments of every Linear's input, kept in one safetensors file.

Layers that read the same tensor (q, k and v, say) share one entry. Names are the layers' without any file prefix.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from .errors import TpecError
from .outputs import OutputStats, merge_outputs

VERSION = "1"


@dataclass(frozen=True)
class InputStats:
    """Statistics of one input of width n over `tokens` rows x; all tensors float32 on the CPU.

    gram [n, n] is E[x x^T]; above the width limit it is None and `vectors` [n, k], `values` [k] are its leading
    eigenpairs and `rest` [n] the diagonal of what they leave. mean [n] is E[x], absmax the largest |x|.
    """

    mean: torch.Tensor
    absmax: float
    tokens: int
    gram: torch.Tensor | None = None
    vectors: torch.Tensor | None = None
    values: torch.Tensor | None = None
    rest: torch.Tensor | None = None

    @property
    def width(self) -> int:
        return len(self.mean)

    def second_moment(self, device: torch.device | None = None) -> torch.Tensor:
        """E[x x^T] [n, n] float32 on `device`, as exact as what was kept."""
        if self.gram is not None:
            return self.gram.to(device).clone()
        vectors = self.vectors.to(device)
        return (vectors * self.values.to(device)) @ vectors.mT + torch.diag(self.rest.to(device))

    def energies(self) -> torch.Tensor:
        """The diagonal of E[x x^T] [n]."""
        gram = self.gram
        return gram.diagonal() if gram is not None else self.rest + self.vectors.square() @ self.values

    @property
    def nbytes(self) -> int:
        tensors = (self.mean, self.gram, self.vectors, self.values, self.rest)
        return sum(t.nbytes for t in tensors if t is not None)


@dataclass(frozen=True)
class Calibration:
    """Statistics by group, and which group each layer belongs to; `layers_hash` identifies the model's layers.

    `outputs` holds statistics of the gradients at layers' outputs, of as many layers as there are any. `shapes` are the
    weights [out, in] of all the model's Linear layers, also of those that saw no input; empty when an earlier version
    wrote the file. `identity` is that of the file which the statistics are read from, if they are.
    """

    groups: Mapping[str, InputStats]
    layers: Mapping[str, str]
    layers_hash: str
    source: str = ""
    runs: int = 0
    outputs: Mapping[str, OutputStats] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    identity: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        unknown = set(self.layers.values()) - self.groups.keys()
        if unknown:
            raise TpecError(f"The calibration names a group '{min(unknown)}' that it does not hold: it is damaged.")

    def stats(self, layer: str) -> InputStats | None:
        group = self.layers.get(layer)
        return self.groups[group] if group is not None else None

    @property
    def nbytes(self) -> int:
        return sum(stats.nbytes for stats in (*self.groups.values(), *self.outputs.values()))

    def summary(self) -> str:
        tokens = [stats.tokens for stats in self.groups.values()]
        gradients = f", output gradients of {len(self.outputs)}" if self.outputs else ""
        return (f"{len(self.layers)} layers with {len(self.groups)} different inputs{gradients}, {self.runs} runs, "
                f"{min(tokens):,} to {max(tokens):,} tokens, {self.nbytes / 1e6:.1f} MB")

    def digest(self) -> str:
        """A hash of the content, or of the file's header, size and time, for resuming."""
        if self.identity is not None:
            return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        digest = hashlib.sha256(json.dumps([dict(self.layers), self.layers_hash], sort_keys=True).encode())
        for name, stats in sorted(self.groups.items()):
            digest.update(f"{name} {stats.tokens} {stats.absmax}".encode())
            for tensor in (stats.mean, stats.gram, stats.vectors, stats.values, stats.rest):
                if tensor is not None:
                    digest.update(tensor.contiguous().numpy().tobytes())
        for name, stats in sorted(self.outputs.items()):
            digest.update(f"{name} {stats.tokens}".encode())
            digest.update(stats.gram.contiguous().numpy().tobytes())
        return digest.hexdigest()


def hash_layers(shapes: Mapping[str, tuple[int, ...]] | Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """One hash of a model's Linear layers: names and weight shapes [out, in]."""
    items = sorted((name, list(shape)) for name, shape in dict(shapes).items())
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()


def merge(first: Calibration, second: Calibration) -> Calibration:
    """Both calibrations as one, weighted by tokens. Raises TpecError when they are of different models."""
    if first.layers_hash != second.layers_hash:
        raise TpecError("The two calibrations are of different models (their layers differ): they cannot be added.")
    if dict(first.layers) != dict(second.layers):
        raise TpecError("The two calibrations share inputs differently between layers: collect them anew.")
    groups = {name: merge_stats(name, stats, second.groups[name]) for name, stats in first.groups.items()}
    return replace(first, groups=groups, runs=first.runs + second.runs, shapes=first.shapes or second.shapes,
                   outputs=merge_outputs(first.outputs, second.outputs), identity=None)


def merge_stats(name: str, a: InputStats, b: InputStats) -> InputStats:
    """Token-weighted mean of two statistics of the same input."""
    if a.width != b.width or (a.gram is None) != (b.gram is None):
        raise TpecError(f"The two calibrations keep input '{name}' in different forms: collect them anew.")
    share = a.tokens / (a.tokens + b.tokens)
    mean = a.mean * share + b.mean * (1 - share)
    both = {"mean": mean, "absmax": max(a.absmax, b.absmax), "tokens": a.tokens + b.tokens}
    if a.gram is not None:
        return InputStats(gram=a.gram * share + b.gram * (1 - share), **both)
    vectors = torch.cat([a.vectors * (a.values * share).sqrt(), b.vectors * (b.values * (1 - share)).sqrt()], 1)
    rest = a.rest * share + b.rest * (1 - share)
    return InputStats(**both, **summarize(vectors, rest, a.values.numel()))


def summarize(factor: torch.Tensor, rest: torch.Tensor, k: int) -> dict[str, torch.Tensor]:
    """The k leading eigenpairs of F F^T [n, n] from F [n, m], and `rest` plus the diagonal of what they leave."""
    left, sigma, _ = torch.linalg.svd(factor, full_matrices=False)
    values = sigma.square()
    dropped = (left[:, k:].square() * values[k:]).sum(1)
    return {"vectors": left[:, :k].contiguous(), "values": values[:k].contiguous(), "rest": rest + dropped}
