"""Watch the gradients at the outputs of a model's Linear layers while someone else runs it backwards."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import torch

from .gradients import GradientStats, OutputAccumulator
from .workspace import Workspace

_SEED = 20250815


class GradientCollector:
    """Context manager: hooks the given modules and adds up the gradients at their outputs [..., tokens, rows].

    The modules compute what they always do, and only runs with gradients count: make one with an input that requires
    grad and give its result to `probe`. Outputs of one vector per sample (modulation layers, say) are left out: their
    few gradients say too little. Activation checkpointing is fine.
    """

    def __init__(self, modules: Mapping[str, torch.nn.Module], device: torch.device | None = None) -> None:
        self._modules = dict(modules)
        self._device = device
        self._sums: dict[str, OutputAccumulator] = {}
        self._workspace = Workspace()
        self._hooks = ExitStack()
        self._random = torch.Generator().manual_seed(_SEED)

    def __enter__(self) -> "GradientCollector":
        for name, module in self._modules.items():
            self._hooks.enter_context(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._hooks.close()
        if error is not None:
            # As a Collector does.
            self._sums.clear()
            self._workspace = Workspace()

    def probe(self, result: torch.Tensor) -> None:
        """Send a random direction of the model's result backwards; E[g g^T] over directions is J^T J (Hutchinson)."""
        direction = torch.randn(result.shape, generator=self._random)
        result.backward(direction.to(result.device, result.dtype))

    def finish(self) -> dict[str, GradientStats]:
        """Statistics by layer, of those that any gradient reached."""
        sums, self._sums = self._sums, {}
        return {name: total.finish() for name, total in sums.items() if total.usable}

    def _hook(self, name: str):  # noqa: ANN202 - a hook
        def hook(module: torch.nn.Module, arguments: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.requires_grad and output.ndim >= 3 \
                    and output.shape[-2] > 1:
                output.register_hook(partial(self._add, name))

        return hook

    def _add(self, name: str, gradient: torch.Tensor) -> None:
        rows = gradient.shape[-1]
        if name not in self._sums:
            self._sums[name] = OutputAccumulator(rows, self._device or gradient.device, self._workspace)
        self._sums[name].add(gradient.detach().reshape(-1, rows))
