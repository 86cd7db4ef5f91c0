"""What a run did, layer by layer, for people and as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: From this share on, weights that became zero are worth a word. A normal distribution loses one in 100 000.
COARSE = 0.02


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer. Errors are relative norms |Q - W| / |W|; losses are relative to round to nearest's.

    `principal_before` and `principal_after` are the published objective |u1^T (Q - W) v1| / sigma1 of round to nearest
    and of the result (data-free only, else None); `saturated` counts weights beyond +-448 of the scale, `sweeps` is how
    many of coordinate descent were made: fewer than asked for where nothing moved any more. `vanished` counts weights
    that became zero: in a layer with a few far too large weights the errors, which these dominate, do not show it.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    relative_error: float
    nearest_error: float
    loss: float
    nearest_loss: float
    saturated: int
    metric: str
    sweeps: int
    seconds: float
    principal_before: float | None = None
    principal_after: float | None = None
    vanished: int = 0

    @property
    def vanished_share(self) -> float:
        """The share of weights that became zero though they were not."""
        return self.vanished / max(math.prod(self.shape), 1)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LayerReport":
        """What `to_json` gave, also after its way through a JSON file."""
        return cls(**{**data, "shape": tuple(data["shape"])})

    def to_json(self) -> dict[str, object]:
        """Plain data, field by field."""
        return asdict(self)

    @property
    def loss_ratio(self) -> float:
        """The layer's loss against round to nearest on the same metric; 1 when both are zero."""
        return self.loss / self.nearest_loss if self.nearest_loss > 0 else 1.0

    @property
    def error_ratio(self) -> float:
        """The root of `loss_ratio`; 0 where float32 left a loss of nothing slightly below zero."""
        return math.sqrt(max(self.loss_ratio, 0.0))

    @property
    def error(self) -> float:
        """The relative error that plain rounding would need to lose as little: `nearest_error` x `error_ratio`."""
        return self.nearest_error * self.error_ratio


@dataclass(frozen=True)
class KeptLayer:
    """A layer whose weight [out, in] stayed in high precision, and why, for people."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Report:
    """A whole run. Sizes in bytes, times in seconds; `kind` is ComfyUI's model folder for the file.

    `kept` counts tensors, those of biases and norms as well; `kept_layers` are the weights of layers among them.
    `calibration` says what was known of the layers' inputs, '' for nothing.
    """

    source: str
    output: Path
    kind: str
    family: str
    why: str
    settings: dict[str, object]
    layers: tuple[LayerReport, ...]
    kept: int
    dropped: int
    source_nbytes: int
    output_nbytes: int
    seconds: float
    device: str
    stages: dict[str, float]
    notes: tuple[str, ...] = ()
    kept_layers: tuple[KeptLayer, ...] = ()
    calibration: str = ""

    @property
    def error_ratio(self) -> float:
        """Geometric mean over layers of their error ratio: what is left of round to nearest's error."""
        ratios = [layer.loss_ratio for layer in self.layers if layer.loss_ratio > 0]
        return math.exp(sum(math.log(ratio) for ratio in ratios) / (2 * len(ratios))) if ratios else 1.0

    @property
    def relative_error(self) -> float:
        """Geometric mean over layers of the relative weight error."""
        errors = [layer.relative_error for layer in self.layers if layer.relative_error > 0]
        return math.exp(sum(map(math.log, errors)) / len(errors)) if errors else 0.0

    def headline(self) -> str:
        """The result in one sentence that needs no knowledge of how it was reached."""
        if self.settings.get("method") != "tpec":
            return "Plain FP8 rounding, as asked for."
        gain = round(100 * (1 - self.error_ratio))
        said = f"Rounding error {gain} % lower than plain FP8" if gain > 0 else "Rounding error as with plain FP8"
        if all(layer.metric == "weight" for layer in self.layers):
            return f"{said}; calibrate for much less."
        return f"{said}."

    def worst(self, count: int) -> tuple[LayerReport, ...]:
        """The layers with the largest `error`, the largest first."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.error)[:count])

    def summary(self) -> str:
        """What came of it and what was recognised, for a node; what matters most first."""
        return f"{self.result()}\n{self.why}"

    def result(self) -> str:
        """What came of it, in a few lines."""
        worst = ", ".join(f"{layer.name} ({100 * layer.error:.2f} %)" for layer in self.worst(3))
        return "\n".join([
            self.headline(),
            f"{self.source_nbytes / 1e9:.3f} GB -> {self.output_nbytes / 1e9:.3f} GB "
            f"({self.output_nbytes / self.source_nbytes:.3f} x), {self.seconds:.1f} s on {self.device}",
            f"{len(self.layers)} layers in FP8, {self.kept} tensors kept"
            + (f", {self.dropped} dropped" if self.dropped else ""),
            *([f"Largest errors: {worst}"] if worst else []), *self.warnings(), *self.notes])

    def warnings(self) -> list[str]:
        """A sentence on layers whose scale is too coarse for most of their weights, if there are any."""
        found = sorted((layer for layer in self.layers if layer.vanished_share > COARSE),
                       key=lambda layer: -layer.vanished_share)
        if not found:
            return []
        shown = ", ".join(f"{layer.name} ({100 * layer.vanished_share:.0f} %)" for layer in found[:3])
        return [f"{len(found)} layers have a few weights so large that others became 0: {shown}; keep them (exclude)."]

    def table(self) -> str:
        """One line per layer, as a Markdown table with even columns: errors in % of the layer's weights.

        'error' counts each weight as much as the metric does, 'plain' is round to nearest's, 'ratio' the one by the
        other.
        """
        head = ("layer", "shape", "scale", "error %", "plain %", "ratio", "metric")
        rows = [(layer.name, "x".join(map(str, layer.shape)), f"{layer.scale:.4g}", f"{100 * layer.error:.3f}",
                 f"{100 * layer.nearest_error:.3f}", f"{layer.error_ratio:.3f}", layer.metric) for layer in self.layers]
        return _markdown([head, *rows])

    def text(self) -> str:
        return self.summary() + "\n\n" + self.table()

    def to_json(self) -> dict[str, object]:
        """Plain data; file names only, no folders. The run's `loss_ratio` is an older name of its `error_ratio`."""
        data = asdict(self)
        data["output"] = self.output.name
        data["layers"] = [{**layer.to_json(), "loss_ratio": layer.loss_ratio, "error_ratio": layer.error_ratio}
                          for layer in self.layers]
        data["error_ratio"] = data["loss_ratio"] = self.error_ratio
        data["relative_error"] = self.relative_error
        return data


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table with its first row as the head; texts to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) if column in (0, len(widths) - 1) else cell.rjust(width)
                               for column, (cell, width) in enumerate(zip(row, widths, strict=True))) + " |"
             for row in rows]
    rule = "|" + "|".join("-" * (width + 2) if column in (0, len(widths) - 1) else "-" * (width + 1) + ":"
                          for column, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
