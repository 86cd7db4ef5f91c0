"""Watching a model's layers: exact statistics, shared inputs, and no trace left on the model."""

import pytest
import torch
from samples import generator

from tpec.errors import TpecError
from tpec.statistics.calibration import hash_layers
from tpec.statistics.sums import WIDTH_LIMIT
from tpec.statistics.watching import Collector, join_passes, plan_collection

CPU = torch.device("cpu")
WIDTH = 12


def linear(rows: int, columns: int) -> torch.nn.Module:
    layer = torch.nn.modules.linear.Linear(columns, rows)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(rows, columns, generator=generator(rows)) * 0.3)
        layer.bias.fill_(0.1)
    return layer


class Attention(torch.nn.Module):
    """q, k and v read the same tensor; the projection another one; `spare` is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj, self.spare = (linear(WIDTH, WIDTH) for _ in range(5))
        self.fail = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.q(x) * self.k(x).sigmoid() + self.v(x)
        if self.fail:
            raise RuntimeError("broken in the middle")
        return self.proj(mixed)


@pytest.fixture
def model() -> Attention:
    return Attention()


def modules(model: Attention) -> dict[str, torch.nn.Module]:
    return {name: getattr(model, name) for name in ("q", "k", "v", "proj", "spare")}


def shapes() -> dict[str, tuple[int, int]]:
    return {name: (WIDTH, WIDTH) for name in ("q", "k", "v", "proj", "spare")}


def hooks(model: Attention) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def batch(seed: int, *more: int) -> torch.Tensor:
    return torch.randn(*(more or (2, 5)), WIDTH, generator=generator(seed))


def test_statistics_are_those_of_the_inputs(model: Attention) -> None:
    batches = [batch(seed) for seed in range(4)]
    seen = []
    handle = model.proj.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with Collector(modules(model)) as collector, torch.no_grad():
        for x in batches:
            model(x)
    handle.remove()
    calibration = collector.finish(shapes(), "model.safetensors", 4)
    for name, tensors in (("q", batches), ("v", batches), ("proj", seen)):
        rows = torch.cat(tensors).reshape(-1, WIDTH).double()
        stats = calibration.stats(name)
        assert torch.allclose(stats.second_moment().double(), rows.T @ rows / len(rows), atol=1e-5)
        assert torch.allclose(stats.mean.double(), rows.mean(0), atol=1e-6)
        assert (stats.tokens, stats.absmax) == (40, rows.abs().max().float().item())
    assert (calibration.source, calibration.runs) == ("model.safetensors", 4)
    assert calibration.layers_hash == hash_layers(shapes())


def test_inputs_count_by_the_weight_of_their_time(model: Attention) -> None:
    batches, weights = [batch(seed) for seed in range(3)], (0.5, 2.0, 0.0)
    with Collector(modules(model)) as collector, torch.no_grad():
        for x, collector.weight in zip(batches, weights, strict=True):
            model(x)
    stats = collector.finish(shapes()).stats("q")
    rows = [x.reshape(-1, WIDTH).double() for x in batches]
    expected = sum(weight * part.T @ part for part, weight in zip(rows, weights, strict=True)) / (10 * sum(weights))
    assert torch.allclose(stats.second_moment().double(), expected, atol=1e-5)
    assert stats.tokens == 30
    assert stats.absmax == max(part.abs().max().float().item() for part in rows), "the largest is the largest"


def test_runs_beside_count_by_their_share_and_not_for_single_vectors(model: Attention) -> None:
    real, made_up = batch(0), batch(1)
    with Collector(modules(model)) as collector, torch.no_grad():
        model(real)
        with collector.beside(0.25):
            model(made_up)
            model(made_up[:, :1])
            model(made_up[:, 0])
        model(real)
    stats = collector.finish(shapes()).stats("q")
    one, other = real.reshape(-1, WIDTH).double(), made_up.reshape(-1, WIDTH).double()
    expected = (2 * one.T @ one + 0.25 * other.T @ other) / (2.25 * len(one))
    assert torch.allclose(stats.second_moment().double(), expected, atol=1e-5)
    assert stats.tokens == 3 * len(one)


def test_shared_inputs_are_one_group(model: Attention) -> None:
    with Collector(modules(model)) as collector, torch.no_grad():
        model(batch(0))
        model(batch(1))
    calibration = collector.finish(shapes())
    assert dict(calibration.layers) == {"q": "q", "k": "q", "v": "q", "proj": "proj"}
    assert calibration.groups.keys() == {"q", "proj"}
    assert calibration.stats("spare") is None
    assert "4 layers with 2 different inputs" in calibration.summary()


def test_input_changed_in_place_is_another_input() -> None:
    first, second = linear(4, WIDTH), linear(4, WIDTH)
    x = batch(0)
    with Collector({"a": first, "b": second}) as collector, torch.no_grad():
        first(x)
        x.mul_(2)
        second(x)
    calibration = collector.finish({})
    assert dict(calibration.layers) == {"a": "a", "b": "b"}
    assert torch.allclose(calibration.stats("b").second_moment(), calibration.stats("a").second_moment() * 4, rtol=1e-4)


def test_layers_that_stop_sharing_count_for_themselves() -> None:
    first, second = linear(4, WIDTH), linear(4, WIDTH)
    x, y = batch(0), batch(1)
    with Collector({"a": first, "b": second}) as collector, torch.no_grad():
        first(x), second(x)
        first(x), second(y)
    calibration = collector.finish({})
    assert calibration.stats("a").tokens == 20
    rows = y.reshape(-1, WIDTH).double()
    assert torch.allclose(calibration.stats("b").second_moment().double(), rows.T @ rows / 10, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_outputs_stay_bit_equal(model: Attention, mode) -> None:
    x = batch(3)
    with mode():
        before = model(x)
        with Collector(modules(model)):
            during = model(x)
        after = model(x)
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert hooks(model) == 0


def test_hooks_are_removed_after_an_exception(model: Attention) -> None:
    model.fail = True
    with pytest.raises(RuntimeError, match="broken in the middle"), Collector(modules(model)) as collector:
        assert hooks(model) == 5
        model(batch(0))
    assert hooks(model) == 0
    model.fail = False
    model(batch(1))
    with pytest.raises(TpecError, match="No layer was run"):
        collector.finish(shapes())


def test_inputs_of_any_form(model: Attention) -> None:
    layer = linear(3, WIDTH)
    with Collector({"a": layer}) as collector, torch.no_grad():
        for given in (batch(0, 1), batch(1, 2, 3, 4), batch(2, 0), batch(3, 1).squeeze(0)):
            layer(given)
    assert collector.finish({}).stats("a").tokens == 1 + 24 + 1


def test_half_precision_inputs_are_summed_in_float32() -> None:
    layer = linear(3, WIDTH).half()
    x = batch(0, 3000).half()
    with Collector({"a": layer}, CPU) as collector, torch.no_grad():
        layer(x)
    rows = x.double()
    assert torch.allclose(collector.finish({}).stats("a").second_moment().double(), rows.T @ rows / 3000, atol=1e-4)


def test_a_pause_within_a_pause_ends_with_the_outer_one() -> None:
    layer = linear(3, WIDTH)
    with Collector({"a": layer}) as collector, torch.no_grad():
        with collector.paused():
            with collector.paused():
                layer(batch(0))
            layer(batch(1))
        layer(batch(2, 7))
    assert collector.finish({}).stats("a").tokens == 7


def test_nothing_run_is_one_sentence(model: Attention) -> None:
    with Collector(modules(model)) as collector:
        pass
    with pytest.raises(TpecError, match="No layer was run while calibrating"):
        collector.finish(shapes())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("width", [WIDTH, WIDTH_LIMIT + 8])
def test_infinite_inputs_are_refused_by_name(width: int, value: float) -> None:
    layers = {"fine": linear(3, width), "broken": linear(3, width)}
    x = torch.ones(5, width)
    with Collector(layers) as collector, torch.no_grad():
        layers["fine"](x)
        layers["broken"](torch.where(torch.arange(width) == 1, value, x))
        layers["broken"](x.clone())
    with pytest.raises(TpecError, match="input of 1 of 2 layers, 'broken' first, became infinite or NaN"):
        collector.finish({})


def test_passes_are_joined_to_what_one_pass_gives(model: Attention) -> None:
    parts = []
    for names in (("q", "k"), ("v", "proj")):
        with Collector({name: modules(model)[name] for name in names}) as collector, torch.no_grad():
            model(batch(0))
        parts.append(collector.finish(shapes(), "m", 1))
    joined = join_passes(parts)
    with Collector(modules(model)) as collector, torch.no_grad():
        model(batch(0))
    whole = collector.finish(shapes(), "m", 1)
    for name in ("q", "k", "v", "proj"):
        assert torch.equal(joined.stats(name).second_moment(), whole.stats(name).second_moment())
    assert (joined.layers_hash, joined.runs) == (whole.layers_hash, 1)


def test_plan_on_the_device_when_it_fits() -> None:
    widths = {f"layer{at}": 100 for at in range(5)}
    gpu = torch.device("cuda")
    plan = plan_collection(widths, gpu, 5 * 40_000, 0)
    assert (plan.passes, plan.device, plan.nbytes) == ((tuple(widths),), gpu, 200_000)
    assert "VRAM (cuda)" in plan.text()


def test_plan_in_passes_on_the_host_otherwise() -> None:
    widths = {f"layer{at}": 100 for at in range(5)}
    plan = plan_collection(widths, torch.device("cuda"), 199_999, 80_000)
    assert [len(names) for names in plan.passes] == [2, 2, 1]
    assert (plan.device, plan.nbytes) == (CPU, 80_000)
    assert sum(plan.passes, ()) == tuple(widths)
    assert "in 3 passes" in plan.text()
    one = plan_collection(widths, CPU, 0, 200_000)
    assert (one.passes, one.nbytes) == ((tuple(widths),), 200_000)
    assert "passes" not in one.text()
    tight = plan_collection(widths, CPU, 0, 1)
    assert [len(names) for names in tight.passes] == [1] * 5


def test_no_pass_takes_more_than_the_most() -> None:
    widths = {f"layer{at}": 100 for at in range(5)}
    for device in (CPU, torch.device("cuda")):
        plan = plan_collection(widths, device, 1 << 40, 1 << 40, most=80_000)
        assert [len(names) for names in plan.passes] == [2, 2, 1]
        assert (plan.device, plan.nbytes) == (device, 80_000)


def test_layers_that_read_one_vector_count_once() -> None:
    widths, rows = {"a": 100, "mod1": 100, "b": 100, "mod2": 100}, dict.fromkeys(("a", "mod1", "b", "mod2"), 10)
    plan = plan_collection(widths, CPU, 0, 1 << 40, rows, {"mod1", "mod2"})
    assert plan.nbytes == 3 * 40_000 + 2 * 400
    assert plan.passes == (("a", "mod1", "b", "mod2"),)


def test_flux_takes_no_more_than_six_gigabytes() -> None:
    blocks = [(3072, 9216), (3072, 3072), (3072, 12288), (12288, 3072)] * 38 + [(3072, 21504), (15360, 3072)] * 38
    widths = {str(at): width for at, (width, _) in enumerate(blocks)}
    rows = {str(at): count for at, (_, count) in enumerate(blocks)}
    inputs, both = (plan_collection(widths, CPU, 0, 1 << 40, given) for given in (None, rows))
    assert (len(inputs.passes), len(both.passes)) == (2, 4)
    assert max(inputs.nbytes, both.nbytes) < 5.5e9


@pytest.mark.parametrize("inference", [False, True])
def test_layers_that_read_equal_vectors_share_them(inference: bool) -> None:
    """Modulation layers activate the same embedding each for itself."""
    layers = {name: torch.nn.modules.linear.Linear(4, 3) for name in ("first", "second", "other", "tokens", "more")}
    with torch.inference_mode(inference), torch.no_grad(), Collector(layers) as collector:
        for seed in range(3):
            vector = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
            layers["first"](vector.sigmoid())
            layers["second"](vector.sigmoid())
            layers["other"](vector)
            layers["tokens"](vector[None].clone())
            layers["more"](vector[None].clone())
    calibration = collector.finish({name: (3, 4) for name in layers})
    assert calibration.layers == {"first": "first", "second": "first", "other": "other", "tokens": "tokens",
                                  "more": "more"}
    assert {stats.tokens for stats in calibration.groups.values()} == {15}


def test_an_input_written_to_in_inference_mode_counts_for_itself() -> None:
    layers = {name: torch.nn.modules.linear.Linear(4, 3) for name in ("first", "second", "third")}
    with torch.inference_mode(), Collector(layers) as collector:
        x = torch.randn(5, 4)
        layers["first"](x)
        layers["second"](x)
        x.mul_(3)
        layers["third"](x)
    calibration = collector.finish({name: (3, 4) for name in layers})
    assert calibration.layers == {"first": "first", "second": "first", "third": "third"}
    third, first = (calibration.stats(name).second_moment() for name in ("third", "first"))
    torch.testing.assert_close(third, 9 * first)
