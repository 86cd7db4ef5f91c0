"""What a run did, layer by layer, for people and as JSON."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer. Errors are relative norms |Q - W| / |W|; losses are relative to round to nearest's.

    `principal_before` and `principal_after` are the published objective |u1^T (Q - W) v1| / sigma1 of round to nearest
    and of the result (data-free only, else None); `saturated` counts weights beyond +-448 of the scale, `sweeps` is how
    many of coordinate descent were made: fewer than asked for where nothing moved any more.
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

    @property
    def loss_ratio(self) -> float:
        """The layer's loss against round to nearest on the same metric; 1 when both are zero."""
        return self.loss / self.nearest_loss if self.nearest_loss > 0 else 1.0

    @property
    def error_ratio(self) -> float:
        """The root of `loss_ratio`; 0 where float32 left a loss of nothing slightly below zero."""
        return math.sqrt(max(self.loss_ratio, 0.0))


@dataclass(frozen=True)
class Report:
    """A whole run. Sizes in bytes, times in seconds; `kind` is ComfyUI's model folder for the file."""

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

    @property
    def loss_ratio(self) -> float:
        """Geometric mean over layers of the root of loss against round to nearest's: an error ratio."""
        ratios = [layer.loss_ratio for layer in self.layers if layer.loss_ratio > 0]
        return math.exp(sum(math.log(ratio) for ratio in ratios) / (2 * len(ratios))) if ratios else 1.0

    @property
    def relative_error(self) -> float:
        """Geometric mean over layers of the relative weight error."""
        errors = [layer.relative_error for layer in self.layers if layer.relative_error > 0]
        return math.exp(sum(map(math.log, errors)) / len(errors)) if errors else 0.0

    def summary(self) -> str:
        """What was recognised and what came of it, for a node."""
        return f"{self.why}\n{self.result()}"

    def result(self) -> str:
        """What came of it, in a few lines."""
        lines = [
            f"{len(self.layers)} layers in FP8, {self.kept} tensors kept"
            + (f", {self.dropped} dropped" if self.dropped else ""),
            f"{self.source_nbytes / 1e9:.3f} GB -> {self.output_nbytes / 1e9:.3f} GB "
            f"({self.output_nbytes / self.source_nbytes:.3f} x), {self.seconds:.1f} s on {self.device}",
        ]
        if self.settings.get("method") == "tpec":
            lines.append(f"error on the metric in use: {self.loss_ratio:.3f} x round to nearest "
                         f"(weights: {self.relative_error:.4f} relative)")
        return "\n".join([*lines, *self.notes])

    def table(self) -> str:
        """One line per layer."""
        head = f"{'layer':48} {'shape':>13} {'error':>8} {'x nearest':>9} {'metric':>10}"
        rows = [f"{layer.name:48} {'x'.join(map(str, layer.shape)):>13} {layer.relative_error:8.5f} "
                f"{layer.error_ratio:9.3f} {layer.metric:>10}" for layer in self.layers]
        return "\n".join([head, *rows])

    def text(self) -> str:
        return self.summary() + "\n\n" + self.table()

    def to_json(self) -> dict[str, object]:
        """Plain data; file names only, no folders."""
        data = asdict(self)
        data["output"] = self.output.name
        data["layers"] = [{**asdict(layer), "loss_ratio": layer.loss_ratio} for layer in self.layers]
        data["loss_ratio"], data["relative_error"] = self.loss_ratio, self.relative_error
        return data
