"""Tasks and their split over lanes."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from samples import save_flux, t5xxl_shapes, write_shapes

from tpec.files.checkpoint import open_checkpoint
from tpec.files.header import TensorInfo
from tpec.model.plan import TensorPlan, make_plan
from tpec.run.tasks import Task, make_tasks, split
from tpec.settings import Settings


def task(at: int, cost: float) -> Task:
    return Task(TensorPlan(TensorInfo(f"t{at}", "BF16", (1, 1), 0, 2), f"t{at}", "quantize", ""), cost)


@given(costs=st.lists(st.floats(0, 100), max_size=30), lanes=st.integers(1, 5), keys=st.integers(1, 40))
def test_split_gives_every_task_once_and_keeps_groups_together(costs: list[float], lanes: int, keys: int) -> None:
    tasks = [task(at, cost) for at, cost in enumerate(costs)]
    groups = [at % keys for at in range(len(tasks))]
    shares = split(tasks, groups, lanes)
    assert len(shares) == lanes
    assert sorted(member.tensor.name for share in shares for member in share) == sorted(t.tensor.name for t in tasks)
    lane_of = {member.tensor.name: lane for lane, share in enumerate(shares) for member in share}
    for group in set(groups):
        assert len({lane_of[t.tensor.name] for t, key in zip(tasks, groups, strict=True) if key == group}) == 1
    assert split(tasks, groups, lanes) == shares


@given(costs=st.lists(st.floats(1, 100), min_size=1, max_size=40), lanes=st.integers(1, 5))
def test_loads_are_balanced(costs: list[float], lanes: int) -> None:
    shares = split([task(at, cost) for at, cost in enumerate(costs)], range(len(costs)), lanes)
    loads = [sum(member.cost for member in share) for share in shares]
    assert max(loads) <= sum(costs) / lanes + max(costs) + 1e-6


def test_one_lane_reads_in_file_order() -> None:
    tasks = [task(at, cost) for at, cost in enumerate([1.0, 9.0, 3.0, 3.0])]
    assert split(tasks, range(4), 1) == [tasks]


def test_tasks_of_a_plan(tmp_path: Path) -> None:
    plan = make_plan(open_checkpoint(save_flux(tmp_path)), Settings())
    tasks = make_tasks(plan, frozenset())
    assert [t.tensor for t in tasks] == list(plan.tensors)
    assert all(t.bias is None for t in tasks)
    assert all(t.cost > 0 for t in tasks)
    name = "single_blocks.0.linear1"
    with_bias = {t.tensor.name: t for t in make_tasks(plan, frozenset({name}))}
    assert with_bias[f"{name}.weight"].written == (f"{name}.weight", f"{name}.bias")
    assert f"{name}.bias" not in with_bias
    assert with_bias[f"{name}.weight"].cost > {t.tensor.name: t for t in tasks}[f"{name}.weight"].cost


def test_dropped_tensors_are_no_tasks(tmp_path: Path) -> None:
    plan = make_plan(open_checkpoint(write_shapes(tmp_path / "t5", t5xxl_shapes())), Settings())
    assert not [t for t in make_tasks(plan, frozenset()) if t.tensor.name.startswith(("decoder.", "lm_head."))]
