"""Watch a model's Linear layers while someone else runs it."""

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch

from ..errors import TpecError
from .calibration import Calibration, hash_layers
from .gradients import output_sums_bytes
from .inputs import InputStats
from .sums import Accumulator, accumulator_bytes, make_accumulator
from .workspace import Workspace

log = logging.getLogger(__name__)

#: Inputs remembered to recognise layers that read the same tensor.
_REMEMBERED = 3
#: Values compared to see that a remembered input was not written to.
_SAMPLED = 256
#: Sums of one pass take at most so many bytes: with what collecting takes besides, 6 GB beside the model.
MOST_BYTES = 5_400_000_000


@dataclass(frozen=True)
class CollectionPlan:
    """Which layers each pass over the data watches, where the sums live, and what that takes in bytes per pass."""

    passes: tuple[tuple[str, ...], ...]
    device: torch.device
    nbytes: int

    def text(self) -> str:
        """One line for people."""
        where = "memory" if self.device.type == "cpu" else f"VRAM ({self.device})"
        times = f", in {len(self.passes)} passes" if len(self.passes) > 1 else ""
        layers = sum(map(len, self.passes))
        return f"statistics of {layers} layers take up to {self.nbytes / 1e9:.2f} GB of {where}{times}"


def plan_collection(widths: Mapping[str, int], device: torch.device, device_bytes: int, host_bytes: int,
                    rows: Mapping[str, int] | None = None, vectors: Collection[str] = (),
                    most: int = MOST_BYTES) -> CollectionPlan:
    """Keep the sums on `device` if they fit in `device_bytes`, else on the host, in as many passes as it takes.

    No pass takes more than `most`, nor on the host more than `host_bytes`. `widths` maps layer names to input widths,
    `rows` to numbers of outputs where their gradients are collected, too. `vectors` are layers that read one vector per
    sample, like modulation: all of one width share it, and no gradients are collected of them. Other sharing is not
    known yet and would only save memory.
    """
    outputs = rows or {}

    def planned(names: Sequence[str]) -> int:
        alone = {name: widths[name] for name in names if name not in vectors}
        shared = {widths[name] for name in names if name in vectors}
        return (sum(map(accumulator_bytes, (*alone.values(), *shared)))
                + sum(output_sums_bytes(outputs[name]) for name in alone if name in outputs))

    total = planned(tuple(widths))
    on_device = device.type != "cpu" and min(total, most) <= device_bytes
    passes = _in_passes(tuple(widths), planned, most if on_device else min(most, host_bytes))
    return CollectionPlan(passes, device if on_device else torch.device("cpu"), max(map(planned, passes)))


def _in_passes(names: Sequence[str], planned: Callable[[Sequence[str]], int],
               limit: int) -> tuple[tuple[str, ...], ...]:
    """Names in order, each pass within the limit, or of one name."""
    passes: list[list[str]] = [[]]
    for name in names:
        if passes[-1] and planned([*passes[-1], name]) > limit:
            passes.append([])
        passes[-1].append(name)
    return tuple(map(tuple, passes))


class _Seen:
    """An input that a group was fed with; a tensor written to since is another input, although the object is the same.

    In inference mode tensors count no versions, so a sample of the values is compared.
    """

    def __init__(self, tensor: torch.Tensor, group: str) -> None:
        self.tensor, self.group = tensor, group
        self._version = None if tensor.is_inference() else tensor._version
        self._sample = tensor.new_empty(0) if self._version is not None else self._values()

    def _values(self) -> torch.Tensor:
        return self.tensor.flatten()[:: max(1, self.tensor.numel() // _SAMPLED)].clone()

    def unchanged(self) -> bool:
        if self._version is not None:
            return self.tensor._version == self._version
        return torch.equal(self._values(), self._sample)


class Collector:
    """Context manager: hooks the given modules, adds up their inputs, and removes the hooks whatever happens.

    When it is left by an exception the sums are let go: they may be gigabytes, and tracebacks keep what they lead to.
    `modules` maps layer names (as in the checkpoint, without its prefix) to modules whose first argument is the input
    [..., n]. The modules compute what they always do.
    """

    def __init__(self, modules: Mapping[str, torch.nn.Module], device: torch.device | None = None) -> None:
        self._modules = dict(modules)
        self._device = device
        self._sums: dict[str, Accumulator] = {}
        self._workspace = Workspace()
        self._group: dict[str, str] = {}
        self._recent: list[_Seen] = []
        #: Of inputs of one vector per sample, the last one's values and group by width.
        self._vectors: dict[int, tuple[torch.Tensor, str]] = {}
        self._hooks = ExitStack()
        self._paused = self._beside = False
        #: What inputs count from now on beside others; 1 on average, where it changes.
        self.weight = 1.0
        self._share = 1.0

    def __enter__(self) -> "Collector":
        for name, module in self._modules.items():
            self._hooks.enter_context(module.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._hooks.close()
        self._recent.clear()
        self._vectors.clear()
        if error is not None:
            self._sums.clear()
            self._workspace = Workspace()

    def _hook(self, name: str):  # noqa: ANN202 - a hook
        def hook(module: torch.nn.Module, arguments: Sequence[object]) -> None:
            if self._paused:
                return
            if arguments and isinstance(arguments[0], torch.Tensor) and arguments[0].numel():
                self._see(name, arguments[0].detach(), arguments[0])

        return hook

    def _see(self, name: str, rows: torch.Tensor, given: torch.Tensor) -> None:
        if self._beside and _one_vector(rows):
            return
        same = next((seen.group for seen in self._recent if seen.tensor is given and seen.unchanged()), None)
        same = same or self._same_vectors(rows)
        leader = self._group.setdefault(name, same or name)
        if same == leader and leader != name:
            return
        if leader != name:
            # Shared until now, not any more: from here on it counts for itself.
            log.warning("layer %s no longer reads the same input as %s", name, leader)
            leader = self._group[name] = name
        self._recent = [_Seen(given, leader), *self._recent[: _REMEMBERED - 1]]
        if _one_vector(rows):
            self._vectors[rows.shape[-1]] = rows.clone(), leader
        if leader not in self._sums:
            self._sums[leader] = make_accumulator(rows.shape[-1], self._device or rows.device, self._workspace)
        self._sums[leader].add(rows.reshape(-1, rows.shape[-1]), self._share * self.weight)

    def _same_vectors(self, rows: torch.Tensor) -> str | None:
        """The group of the last input of one vector per sample, if this one has the same values.

        Modulation layers activate the same embedding each for itself, so no two of them read the same tensor.
        """
        if not _one_vector(rows) or rows.shape[-1] not in self._vectors:
            return None
        values, group = self._vectors[rows.shape[-1]]
        return group if values.device == rows.device and torch.equal(values, rows) else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Runs within do not count."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @contextmanager
    def beside(self, share: float) -> Iterator[None]:
        """Runs within are no real ones and count `share` times, and inputs of one vector per sample not at all.

        Those are what modulation layers read: few values, and none that could stand in for real ones.
        """
        before = self._beside, self._share
        self._beside, self._share = True, share
        try:
            yield
        finally:
            self._beside, self._share = before

    def finish(self, shapes: Mapping[str, tuple[int, ...]], source: str = "", runs: int = 1) -> Calibration:
        """The statistics so far; `shapes` are all of the model's Linear weights [out, in], hooked or not.

        The sums become the statistics on access, one by one: in memory both would take twice as much.
        Raises TpecError when nothing was seen, or values that are not finite.
        """
        if not self._sums:
            raise TpecError("No layer was run while calibrating: the model's layers do not match the checkpoint's; "
                            "use a model as ComfyUI's own loaders give it.")
        sums, self._sums = self._sums, {}
        groups = {name: total.finish() for name, total in sums.items()}
        _refuse_infinite(groups)
        return Calibration(groups, dict(self._group), hash_layers(shapes), source, runs, shapes=dict(shapes))


def _one_vector(rows: torch.Tensor) -> bool:
    return rows.ndim == 2 or rows.ndim > 2 and rows.shape[-2] == 1


def _refuse_infinite(groups: Mapping[str, InputStats]) -> None:
    broken = [name for name, stats in groups.items() if not math.isfinite(stats.absmax)]
    if broken:
        raise TpecError(f"While calibrating, the input of {len(broken)} of {len(groups)} layers, '{broken[0]}' first, "
                        "became infinite or NaN, as float16 does where bf16 does not: load the model in bf16 or "
                        "float32 (in ComfyUI weight_dtype 'default', or its option --fp32-unet).")


def join_passes(parts: Sequence[Calibration]) -> Calibration:
    """One calibration from passes over the same data that each watched other layers."""
    first = parts[0]
    groups = {name: stats for part in parts for name, stats in part.groups.items()}
    layers = {name: group for part in parts for name, group in part.layers.items()}
    outputs = {name: stats for part in parts for name, stats in part.outputs.items()}
    return replace(first, groups=groups, layers=layers, outputs=outputs)
