"""The small trained models of the shared folder, and statistics of their layers that are kept whole."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn import Linear

import tpec.statistics.backward as backward
import tpec.statistics.sums as sums
from tpec.statistics.gradients import HeldGradients, OutputAccumulator
from tpec.statistics.inputs import Gram, HeldInputs
from tpec.statistics.watching import Collector

from .errors import read_tensors
from .minilm import MiniLM

STEPS, GUIDANCE, PROMPTS, FIRST = 8, 3.0, 8, 32
_WHOLE = 1 << 20


@dataclass(frozen=True)
class Statistics:
    """Of inputs and gradients, whole matrices whatever the width; groups by layer as in a calibration."""

    groups: Mapping[str, HeldInputs]
    layers: Mapping[str, str]
    outputs: Mapping[str, HeldGradients]


@dataclass(frozen=True)
class SmallModel:
    """A model in float32 whose Linear layers are modules: run(x, t, context, pooled) predicts the velocity."""

    path: Path
    hidden: int
    run: Any
    linears: Mapping[str, torch.nn.Module]
    conditioning: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, name: str, shared: Path) -> "SmallModel":
        path = next((shared / "models" / f"{name}-shapes").glob("*_bf16.safetensors"))
        conditioning = read_tensors(shared / "models" / "tinyflux-shapes" / "conditioning.safetensors")
        state = {key: tensor.float() for key, tensor in read_tensors(path).items()}
        if name == "tinyflux":
            model = _module(shared / "fidelity" / "flux_layout.py").MiniFlux().eval()
            model.load_state_dict(state)
            linears = {key: one for key, one in model.named_modules() if isinstance(one, Linear)}
            return cls(path, 384, model, linears, conditioning)
        model = _module(shared / "fidelity" / "sd3_layout.py").MiniSD3(state)
        linears = {key.removesuffix(".weight"): _linear(weight, state[f"{key.removesuffix('.weight')}.bias"])
                   for key, weight in state.items() if key.endswith(".weight") and weight.ndim == 2}
        model._linear = lambda x, layer: linears[layer](x)
        return cls(path, model.hidden, model, linears, conditioning)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
    layer = Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def sampled(model: SmallModel, inputs: Collector, gradients: backward.GradientCollector) -> Iterator[None]:
    """Sample stored prompts by Euler steps with guidance; every fourth step is also run backwards."""
    context, pooled = (model.conditioning[key][FIRST:FIRST + PROMPTS].float() for key in ("context", "pooled"))
    both = torch.cat([context, torch.zeros_like(context)]), torch.cat([pooled, torch.zeros_like(pooled)])
    x = torch.randn(PROMPTS, 16, 32, 32, generator=torch.Generator().manual_seed(FIRST))

    def velocity(latent: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
        positive, negative = model.run(torch.cat([latent, latent]), now.expand(2 * PROMPTS), *both).chunk(2)
        return negative + GUIDANCE * (positive - negative)

    times = torch.linspace(1, 0, STEPS + 1)
    for step, (now, then) in enumerate(zip(times, times[1:], strict=False)):
        if step % 4 == 1:
            with inputs.paused(), torch.enable_grad():
                gradients.probe(velocity(x.clone().requires_grad_(True), now))
        with torch.no_grad():
            x = x + (then - now) * velocity(x, now)
        yield


def collect(model: SmallModel, cache: Path) -> Statistics:
    """Statistics of a sampling, or those of an earlier call that are in `cache`."""
    if cache.exists():
        return _loaded(cache)
    for layer in model.linears.values():
        layer.requires_grad_(False)
    with _whole(), Collector(model.linears) as inputs, backward.GradientCollector(model.linears) as gradients:
        for _ in sampled(model, inputs, gradients):
            pass
        found = inputs.finish({}).in_memory()
        outputs = {name: stats.in_memory() for name, stats in gradients.finish().items()}
    return _kept(cache, found.groups, found.layers, outputs)


def collect_text(bed: MiniLM, windows: torch.Tensor, cache: Path) -> Statistics:
    """Statistics of MiniLM's layers over token windows, or those of an earlier call that are in `cache`."""
    if cache.exists():
        return _loaded(cache)
    with _whole(), Collector(bed.linears()) as inputs:
        for _ in bed.run(windows):
            pass
        found = inputs.finish({}).in_memory()
    return _kept(cache, found.groups, found.layers, {})


def _kept(cache: Path, groups: Mapping[str, Any], layers: Mapping[str, str],
          outputs: Mapping[str, HeldGradients]) -> Statistics:
    torch.save({"groups": {name: (s.mean, s.absmax, s.tokens, s.moment.gram) for name, s in groups.items()},
                "layers": dict(layers), "outputs": {name: (s.gram, s.tokens) for name, s in outputs.items()}}, cache)
    return _loaded(cache)


def _loaded(cache: Path) -> Statistics:
    found = torch.load(cache, weights_only=True)
    groups = {name: HeldInputs(mean, absmax, tokens, Gram(gram))
              for name, (mean, absmax, tokens, gram) in found["groups"].items()}
    outputs = {name: HeldGradients(gram, gram.shape[-1], tokens) for name, (gram, tokens) in found["outputs"].items()}
    return Statistics(groups, found["layers"], outputs)


def _whole() -> ExitStack:
    """Within, sums keep every matrix whole, also those that the engine would summarise or cut into runs."""
    stack = ExitStack()
    limit, accumulator = sums.WIDTH_LIMIT, backward.OutputAccumulator

    def restore() -> None:
        sums.WIDTH_LIMIT, backward.OutputAccumulator = limit, accumulator

    stack.callback(restore)
    sums.WIDTH_LIMIT = _WHOLE
    backward.OutputAccumulator = lambda rows, device, workspace: OutputAccumulator(rows, device, workspace, _WHOLE)
    return stack
