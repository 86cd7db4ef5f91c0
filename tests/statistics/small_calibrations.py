"""Statistics of rows that few directions make up, alone and for a small model in Flux layout."""

from pathlib import Path

import torch
from samples import HIDDEN, generator, save_flux

from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import Plan, make_plan
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration, hash_layers
from tpec.statistics.inputs import HeldInputs
from tpec.statistics.sums import GramAccumulator, SketchAccumulator
from tpec.statistics.workspace import Workspace

CPU = torch.device("cpu")
LAYER = "single_blocks.0.linear1"


def rows(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    """Inputs [tokens, width] along four directions, with a little noise and a mean."""
    source = generator(seed)
    mixing = torch.randn(4, width, generator=generator(99))
    return torch.randn(tokens, 4, generator=source) @ mixing + 0.1 * torch.randn(tokens, width, generator=source) + 0.5


def stats(width: int, tokens: int = 2000, seed: int = 0, sketch: bool = False) -> HeldInputs:
    accumulator = (SketchAccumulator if sketch else GramAccumulator)(width, CPU, Workspace())
    accumulator.add(rows(tokens, width, seed))
    return accumulator.finish().in_memory()


def both(seed: int = 0, tokens: int = 500) -> Calibration:
    """Two groups, one whole and one summarised, and three layers that share them."""
    groups = {"a": stats(16, tokens, seed), "wide": stats(64, tokens, seed, sketch=True)}
    shapes = {"a": (4, 16), "b": (8, 16), "w": (4, 64), "unseen": (3, 3)}
    layers = {"a": "a", "b": "a", "w": "wide"}
    return Calibration(groups, layers, hash_layers(shapes), "m.safetensors", 2, shapes=shapes)


def near(kept: torch.Tensor, exact: torch.Tensor, error: float) -> None:
    """Asserts that a moment lost no more than `error` of its norm, and is one still."""
    torch.testing.assert_close(kept, kept.mT)
    assert (kept - exact).norm() < error * exact.norm()
    assert torch.linalg.eigvalsh(kept.double()).min() > -1e-5 * exact.diagonal().mean(), "positive by its making"


def flux_plan(folder: Path, **settings: object) -> Plan:
    return make_plan(open_checkpoint(save_flux(folder)), Settings(**settings))


def flux_calibration(plan: Plan, only: str = "", tokens: int = 4000) -> Calibration:
    layers = {layer.linear_in_model: layer.shape[1] for layer in plan.of("quantize") if only in layer.linear_in_model}
    groups = {str(width): stats(width, tokens) for width in set(layers.values())}
    shapes = {layer.linear_in_model: layer.shape for layer in plan.of("quantize")} | {"img_in": (HIDDEN, 64)}
    return Calibration(groups, {name: str(width) for name, width in layers.items()}, hash_layers(shapes), shapes=shapes)
