"""What a model's layers really see: second moments of every Linear's input, kept in one safetensors file.

Layers that read the same tensor (q, k and v, say) share one entry. Names are the layers' without any file prefix.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..errors import TpecError
from .gradients import GradientStats, merge_outputs
from .inputs import InputStats, merge_inputs
from .weights import Samples

#: Of the file. Version 1 held the matrices themselves, in float32.
VERSION, EARLIER = "2", "1"


@dataclass(frozen=True)
class Calibration:
    """Statistics by group, and which group each layer belongs to; `layers_hash` identifies the model's layers.

    `outputs` holds statistics of the gradients at layers' outputs, of as many layers as there are any. `shapes` are the
    weights [out, in] of all the model's Linear layers, also of those that saw no input; empty when an earlier version
    wrote the file. `identity` is that of the file which the statistics are read from, if they are. `weights` are a
    few of the weights of the model that was calibrated; empty where an earlier version wrote the file.
    """

    groups: Mapping[str, InputStats]
    layers: Mapping[str, str]
    layers_hash: str
    source: str = ""
    runs: int = 0
    outputs: Mapping[str, GradientStats] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    identity: Mapping[str, object] | None = None
    weights: Samples = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.layers.values()) - self.groups.keys()
        if unknown:
            raise TpecError(f"The calibration names a group '{min(unknown)}' that it does not hold: it is damaged, "
                            "collect it anew.")

    def stats(self, layer: str) -> InputStats | None:
        group = self.layers.get(layer)
        return self.groups[group] if group is not None else None

    @property
    def nbytes(self) -> int:
        return sum(stats.nbytes for stats in (*self.groups.values(), *self.outputs.values()))

    def in_memory(self) -> "Calibration":
        """The same with all statistics in memory."""
        groups = {name: stats.in_memory() for name, stats in self.groups.items()}
        outputs = {name: stats.in_memory() for name, stats in self.outputs.items()}
        return replace(self, groups=groups, outputs=outputs, identity=None)

    def summary(self) -> str:
        tokens = [stats.tokens for stats in self.groups.values()]
        gradients = f", output gradients of {len(self.outputs)}" if self.outputs else ""
        return (f"{len(self.layers)} layers with {len(self.groups)} different inputs{gradients}, {self.runs} runs, "
                f"{min(tokens):,} to {max(tokens):,} tokens, {self.nbytes / 1e6:.1f} MB")

    def refuse_other_model(self, layers_hash: str) -> None:
        """Raises TpecError when a calibration of a model with such layers cannot be added to this one."""
        if self.layers_hash != layers_hash:
            raise TpecError("The two calibrations are of different models (their layers differ) and cannot be added: "
                            "use those of one model.")

    def digest(self) -> str:
        """A hash of the content, or of the file's header, size and time, for resuming."""
        if self.identity is not None:
            return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        digest = hashlib.sha256(json.dumps([dict(self.layers), self.layers_hash], sort_keys=True).encode())
        for name, stats in sorted(self.groups.items()):
            digest.update(f"{name} {stats.tokens} {stats.absmax}".encode())
            for tensor in stats.parts().values():
                digest.update(tensor.contiguous().numpy().tobytes())
        for name, stats in sorted(self.outputs.items()):
            digest.update(f"{name} {stats.tokens}".encode())
            digest.update(stats.second_moment().contiguous().numpy().tobytes())
        return digest.hexdigest()


def hash_layers(shapes: Mapping[str, tuple[int, ...]] | Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """One hash of a model's Linear layers: names and weight shapes [out, in]."""
    items = sorted((name, list(shape)) for name, shape in dict(shapes).items())
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()


def merge(first: Calibration, second: Calibration) -> Calibration:
    """Both calibrations as one, weighted by tokens and added up on access.

    Raises TpecError when they are of different models.
    """
    first.refuse_other_model(second.layers_hash)
    if dict(first.layers) != dict(second.layers):
        raise TpecError("The two calibrations share inputs differently between layers: collect them anew.")
    groups = {name: merge_inputs(name, stats, second.groups[name]) for name, stats in first.groups.items()}
    return replace(first, groups=groups, runs=first.runs + second.runs, shapes=first.shapes or second.shapes,
                   weights=second.weights or first.weights,
                   outputs=merge_outputs(first.outputs, second.outputs), identity=None)
