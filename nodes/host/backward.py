"""Runs a ComfyUI model backwards now and then while it samples, so that gradients at its layers can be collected.

ComfyUI loads and samples in inference mode, streams weights that do not fit, and fuses what has no backward. So a
backward run takes copies of its inputs, aliases of the weights that autograd accepts and attention that has a backward,
and recomputes every block and every Linear instead of keeping what they made.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import comfy.ldm.modules.attention as attention
import comfy.model_management as memory
import comfy.ops
import torch
from torch.utils.checkpoint import checkpoint

from ...tpec.errors import TpecError, first_line, is_out_of_memory
from ...tpec.statistics.backward import GradientCollector
from ...tpec.statistics.gradients import GradientStats
from ...tpec.statistics.watching import Collector
from .sampling import schedule_of, steps_at

#: One evaluation of the model in so many is also run backwards.
EVERY = 4
Tree = TypeVar("Tree")
_NOTHING = object()


def with_gradients(patcher, layers: Mapping[str, torch.nn.Module], inputs: Collector, device: torch.device,
                   run: Callable[[object], None]) -> dict[str, GradientStats]:
    """Statistics of the gradients at the layers' outputs, from `run(patcher)`, in which `inputs` collects as well."""
    with GradientCollector(layers, device) as gradients:
        observed = patcher.clone()
        observed.set_model_unet_function_wrapper(BackwardRuns(patcher, layers, inputs, gradients))
        run(observed)
    return gradients.finish()


class BackwardRuns:
    """A model function wrapper for ModelPatcher: samples as ever, and in between feeds a GradientCollector."""

    def __init__(self, patcher, layers: Mapping[str, torch.nn.Module], inputs: Collector,
                 gradients: GradientCollector) -> None:
        self._root, self._layers = patcher.model.diffusion_model, layers
        self._inputs, self._gradients = inputs, gradients
        self._wrapped = patcher.model_options.get("model_function_wrapper")
        self._evaluations = _Evaluations()

    def __call__(self, apply_model: Callable, arguments: dict) -> torch.Tensor:
        if self._wrapped is not None:
            result = self._wrapped(apply_model, arguments)
        else:
            result = apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        if self._evaluations.chosen(arguments):
            self._backward(apply_model, arguments)
        return result

    def _backward(self, apply_model: Callable, arguments: dict) -> None:
        with ExitStack() as stack:
            for context in (torch.inference_mode(False), torch.enable_grad(), self._inputs.paused(), _training(),
                            _aliased(self._root), _own_casts(), _recomputed(self._root, self._layers)):
                stack.enter_context(context)
            x, conditions = _copied(arguments["input"], True), _copied(arguments["c"], True)
            sigma = _copied(arguments["timestep"], True)
            options = conditions["transformer_options"] = _copied(arguments["c"].get("transformer_options", {}), False)
            options["optimized_attention_override"] = _attention
            try:
                denoised = apply_model(x, sigma, **conditions)
                weight = _step_size(sigma.detach(), options).view(-1, *[1] * (denoised.ndim - 1))
                self._gradients.probe(denoised * weight)
            except (RuntimeError, MemoryError) as error:
                raise _sentence(error) from error
            finally:
                # PyTorch keeps the graph of a backward run that was broken off until it makes the next one.
                torch.zeros((), requires_grad=True).backward()


class NoBackward(TpecError):
    """This model, or this machine, has no backward run."""


class _Evaluations:
    """Tells a sampler's evaluations of the model apart, and which of them are run backwards.

    Where positive and negative do not fit together (little memory, prompts of different lengths), ComfyUI calls the
    model once for each: such calls have one sigma and are one evaluation. Each run has a schedule of its own, and
    its chosen ones are a step later than the run's before, so that all steps are seen, few as they may be.
    """

    def __init__(self) -> None:
        self._step = self._run = -1
        self._sigma: float | None = None
        self._schedule: object = _NOTHING

    def chosen(self, arguments: Mapping) -> bool:
        """Whether the call with these arguments of a model function wrapper belongs to a chosen evaluation."""
        sigma = arguments["timestep"].flatten()[0].item()
        schedule = arguments["c"].get("transformer_options", {}).get("sample_sigmas")
        if schedule is not self._schedule:
            self._run, self._step, self._sigma = self._run + 1, -1, None
        if sigma != self._sigma:
            self._step += 1
        self._sigma, self._schedule = sigma, schedule
        # A schedule ends with a sigma that nothing is evaluated at.
        last = len(schedule) - 2 if isinstance(schedule, torch.Tensor) else EVERY
        return (self._step - self._run) % EVERY == max(min(EVERY // 2 - 1, last), 0)


def _sentence(error: BaseException) -> NoBackward:
    """Why there was no backward run, and what to do."""
    if is_out_of_memory(error):
        return NoBackward("There is not enough VRAM to run this model backwards: turn 'sensitivity' off, or use a "
                          "smaller latent or batch.")
    return NoBackward(f"This model cannot be run backwards ({first_line(error)}): turn 'sensitivity' off.")


def _step_size(sigma: torch.Tensor, options: Mapping[str, object]) -> torch.Tensor:
    """How far an error of the denoised result moves the latent in this step, |change of sigma| / sigma, mean 1."""
    schedule = schedule_of(options)
    if schedule is None:
        return torch.ones_like(sigma)
    schedule = schedule.to(sigma)
    moves = schedule.diff().abs() / schedule[:-1].clamp(min=1e-6)
    return moves[steps_at(schedule, sigma)] / moves.mean()


def _attention(original: Callable, *arguments: object, **options: object) -> torch.Tensor:
    return attention.attention_pytorch(*arguments, **options)


def _copied(tree: Tree, grad: bool) -> Tree:
    """The same with tensors that are no inference tensors; floating ones require gradients if `grad`."""
    if isinstance(tree, torch.Tensor):
        copy = tree.clone()
        return copy.requires_grad_(True) if grad and copy.is_floating_point() else copy
    if isinstance(tree, dict):
        return {key: _copied(value, grad) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_copied(value, grad) for value in tree)
    return tree


@contextmanager
def _training() -> Iterator[None]:
    """ComfyUI then takes implementations that have a backward."""
    with _standing_in(memory, "in_training", True):
        yield


@contextmanager
def _aliased(root: torch.nn.Module) -> Iterator[None]:
    """Weights and buffers made in inference mode stand in as normal tensors on the same memory."""
    found, replaced = [], []
    try:
        for module in root.modules():
            if hasattr(module, "_v"):  # ComfyUI's own paging: these only ever come out of a cast
                continue
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None and tensor.is_inference() and type(tensor.data) is torch.Tensor:
                        found.append((table, name, tensor))
        for table, name, tensor in found:
            alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
                tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
            table[name] = torch.nn.Parameter(alias, False) if isinstance(tensor, torch.nn.Parameter) else alias
            replaced.append((table, name, tensor, table[name]))
        yield
    finally:
        for table, name, tensor, alias in replaced:
            # What ComfyUI has put there meanwhile (it moves weights when memory is short) stays.
            if table.get(name) is alias:
                table[name] = tensor


@contextmanager
def _own_casts() -> Iterator[None]:
    """Weights that ComfyUI casts or streams come as copies: its buffers are inference tensors and soon used again."""
    original = comfy.ops.cast_bias_weight

    def cast(*arguments: object, **options: object) -> tuple:
        with torch.inference_mode():
            weight, bias, *rest = original(*arguments, **options)
        return (weight.clone(), bias.clone() if bias is not None else None, *rest)

    with _standing_in(comfy.ops, "cast_bias_weight", cast):
        yield


@contextmanager
def _recomputed(root: torch.nn.Module, layers: Mapping[str, torch.nn.Module]) -> Iterator[None]:
    """Blocks keep their inputs alone and Linears theirs, so streamed weights are only needed one at a time."""
    with ExitStack() as stack:
        for module in _blocks(root):
            stack.enter_context(_standing_in(module, "forward", _block_forward(module.forward)))
        for module in layers.values():
            stack.enter_context(_standing_in(module, "forward", _linear_forward(module.forward)))
        yield


@contextmanager
def _standing_in(owner: object, name: str, value: object) -> Iterator[None]:
    """Within, `owner.name` is `value`; afterwards the owner's own attribute is what it was, none where it had none.

    Other packs patch single modules that way, too.
    """
    before = vars(owner).get(name, _NOTHING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _NOTHING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _blocks(root: torch.nn.Module) -> list[torch.nn.Module]:
    """The members of the outermost module lists: a transformer's blocks."""
    found = []
    for child in root.children():
        found += list(child) if isinstance(child, torch.nn.ModuleList) else _blocks(child)
    return found


def _block_forward(forward: Callable) -> Callable:
    # Blocks may write to their inputs, so that each run needs its own copy of them.
    def own(value: object) -> object:
        return value.clone() if isinstance(value, torch.Tensor) else value

    def run(arguments: tuple, options: dict) -> object:
        return forward(*map(own, arguments), **{name: own(value) for name, value in options.items()})

    return lambda *arguments, **options: checkpoint(run, arguments, options, use_reentrant=False)


def _linear_forward(forward: Callable) -> Callable:
    return lambda x, *more, **options: checkpoint(
        lambda value: forward(value, *more, **options), x, use_reentrant=True, preserve_rng_state=False)
