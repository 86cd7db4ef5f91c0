"""Backward runs of a small model: prints one line per promise that is kept."""

import comfy.model_management as memory
import comfy.ops
import torch
from pack.nodes.host.backward import BackwardRuns
from pack.tpec.errors import TpecError
from pack.tpec.statistics.backward import GradientCollector
from pack.tpec.statistics.watching import Collector
from torch.nn import Linear


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Linear(4, 4), Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).relu())


class Model(torch.nn.Module):
    """`diffusion_model` is what a ModelPatcher's model calls its network."""

    def __init__(self) -> None:
        super().__init__()
        self.diffusion_model = torch.nn.Module()
        self.diffusion_model.blocks = torch.nn.ModuleList([Block(), Block()])
        self.fault: Exception | None = None
        self.backward: list[float] = []

    def apply_model(self, x: torch.Tensor, sigma: torch.Tensor, transformer_options: dict) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.backward.append(sigma.item())
        for block in self.diffusion_model.blocks:
            x = block(x)
        if self.fault is not None and torch.is_grad_enabled():
            raise self.fault
        return x


class Patcher:
    def __init__(self, model: Model) -> None:
        self.model, self.model_options = model, {}


def arguments(sigma: float, schedule: torch.Tensor) -> dict:
    return {"input": torch.ones(1, 3, 4), "timestep": torch.tensor([sigma]),
            "c": {"transformer_options": {"sample_sigmas": schedule}}}


def sampled(model: Model, steps: int, calls: int = 1, times: int = 1) -> list[float]:
    """Which sigmas were run backwards in so many samplings, each step with so many calls."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    model.backward.clear()
    with Collector(layers) as inputs, GradientCollector(layers) as gradients, torch.inference_mode():
        runs = BackwardRuns(Patcher(model), layers, inputs, gradients)
        for _ in range(times):
            schedule = torch.linspace(1, 0, steps + 1)
            for sigma in schedule[:-1].tolist():
                for _ in range(calls):
                    runs(model.apply_model, arguments(sigma, schedule))
    assert gradients.finish(), "no gradient came"
    return model.backward.copy()


def sentence(fault: Exception) -> str:
    model.fault = fault
    try:
        sampled(model, 5)
    except TpecError as error:
        return str(error)
    finally:
        model.fault = None
    return "none"


def patches() -> list[object]:
    """All that a backward run may change on the model and in ComfyUI."""
    own = [vars(module).get("forward") for module in model.modules()]
    tensors = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    return [*own, *tensors, comfy.ops.cast_bias_weight, vars(memory).get("in_training", "absent")]


torch.manual_seed(0)
with torch.inference_mode():
    model = Model()
first, second = model.diffusion_model.blocks
plain = first.one.forward
first.one.forward = lambda x: plain(x)  # another pack's patch of a Linear
wrapped = second.forward
second.forward = lambda x: wrapped(x)  # and of a block
before = patches()
sampled(model, 5)
if patches() == before:
    print("restored")
for fault, words in ((RuntimeError(), "RuntimeError): turn"), (RuntimeError("no grad\nmore"), "(no grad): turn"),
                     (torch.cuda.OutOfMemoryError("CUDA out of memory"), "not enough VRAM"),
                     (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "not enough VRAM")):
    text = sentence(fault)
    print(words if words in text else f"{fault!r}: {text}")
if patches() == before:
    print("restored after errors")
if sampled(model, 4, calls=2, times=4) == [0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 1.0, 1.0]:
    print("both sides of every step")
if len(sampled(model, 1, times=8)) == 2 and len(sampled(model, 1)) == 1:
    print("runs of one step")
