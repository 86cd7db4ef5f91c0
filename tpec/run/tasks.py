"""The jobs of a run and their split over lanes (GPUs, or processes under torchrun)."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..files.dtypes import FLOATS
from ..files.header import TensorInfo
from ..model.families import DROP, QUANTIZE
from ..model.plan import Plan, TensorPlan

#: Relative cost per weight of rounding and per byte of copying; only balance and progress depend on them.
_ROUND_COST = 8.0
_DENSE_COST = 1 / 64
_COPY_COST = 1.0
#: A guess of how much longer rounding rows together takes.
_COUPLED_COST = 3.0


@dataclass(frozen=True)
class Task:
    """One tensor to quantize or to copy; `cost` is in arbitrary units of work, `bias` is corrected along with it."""

    tensor: TensorPlan
    cost: float
    bias: TensorInfo | None = None

    @property
    def quantize(self) -> bool:
        return self.tensor.action == QUANTIZE

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the file's tensors that are done when the task is (scales not counted)."""
        return (self.tensor.name, self.bias.name) if self.bias else (self.tensor.name,)


def make_tasks(plan: Plan, calibrated: frozenset[str], coupled: frozenset[str] = frozenset()) -> tuple[Task, ...]:
    """All tasks in file order; `calibrated` names the layers (with the file's prefix) that have a dense metric.

    Rows of those in `coupled` are rounded together.
    """
    tensors = plan.checkpoint.tensors
    biases = {name: tensors.get(f"{name}.bias") for name in calibrated}
    biases = {name: info for name, info in biases.items() if info and info.dtype in FLOATS and len(info.shape) == 1}
    corrected = {info.name for info in biases.values()}
    return tuple(Task(layer, _cost(layer, plan, calibrated, coupled), biases.get(layer.linear))
                 for layer in plan.tensors if layer.action != DROP and layer.name not in corrected)


def _cost(layer: TensorPlan, plan: Plan, calibrated: frozenset[str], coupled: frozenset[str]) -> float:
    if layer.action != QUANTIZE:
        return _COPY_COST * layer.info.nbytes
    if plan.settings.method == "nearest" or layer.embedding:
        return _COPY_COST * layer.info.nbytes
    per_weight = _ROUND_COST + (_DENSE_COST * layer.shape[1] if layer.linear in calibrated else 0.0)
    return per_weight * layer.info.items * (_COUPLED_COST if layer.linear in coupled else 1.0)


def split(tasks: Sequence[Task], groups: Sequence[object], lanes: int) -> list[list[Task]]:
    """Share tasks over lanes, the costliest first to the least loaded; tasks of one group stay together.

    `groups` [len(tasks)] holds a key per task: layers with the same input share a factor, which one lane computes.
    """
    grouped: dict[object, list[Task]] = {}
    for task, group in zip(tasks, groups, strict=True):
        grouped.setdefault(group, []).append(task)
    position = {id(task): at for at, task in enumerate(tasks)}
    loads = [0.0] * lanes
    shares: list[list[list[Task]]] = [[] for _ in range(lanes)]
    by_cost = sorted(grouped.values(), key=lambda members: -sum(task.cost for task in members))
    for members in by_cost:
        lane = loads.index(min(loads))
        loads[lane] += sum(task.cost for task in members)
        shares[lane].append(members)
    # File order within a lane keeps reads sequential; a group stays in one piece.
    return [[task for members in sorted(share, key=lambda m: position[id(m[0])]) for task in members]
            for share in shares]
