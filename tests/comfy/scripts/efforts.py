"""How much a model that calibrates itself is sampled, by how fast and how large the machine is: one line per case."""

import sys
import types
from types import SimpleNamespace

import torch

sys.modules["server"] = types.SimpleNamespace(PromptServer=None)

from pack.nodes.calibration import automatic  # noqa: E402
from pack.nodes.calibration.latents import Size  # noqa: E402
from pack.nodes.host.backward import NoBackward  # noqa: E402
from pack.tpec.errors import TpecError  # noqa: E402
from pack.tpec.statistics.watching import CollectionPlan  # noqa: E402


def chosen(seconds: float, passes: int = 1, more: int = 1) -> str:
    """With evaluations of so many seconds; statistics take `passes`, with those of the outputs `more`."""
    automatic.plan_for = lambda layers, patcher, outputs=False: CollectionPlan(
        ((),) * (more if outputs else passes), torch.device("cpu"), 0)
    sampling = SimpleNamespace(layers={}, patcher=None, collect=lambda plan, effort, progress: effort)
    progress = SimpleNamespace(text=lambda *_, **__: None)
    try:
        effort = automatic._sampled(sampling, automatic.EFFORTS, Size(), seconds, progress)
    except TpecError as error:
        return str(error)
    return f"{effort.runs} x {effort.steps} steps{' and backwards' if effort.sensitivity else ''}"


for seconds in (0.1, 1.5, 2.5, 4.0, 20.0, 40.0):
    print(chosen(seconds))
print(chosen(0.1, more=2))
print(chosen(0.6, passes=2, more=4))
print(chosen(0.8, passes=2, more=4))
print(chosen(4.0, passes=2, more=4))
print(chosen(20.0, passes=2, more=4))
print(sorted({effort.steps_of(number) for effort in automatic.EFFORTS[:1] for number in range(16)}))
print(issubclass(NoBackward, TpecError))
