"""A calibration's file: what it keeps, how it is written and read, and that damaged ones are refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import load, names_in, python, save_flux, sha256, small_disk
from small_calibrations import CPU, both, flux_calibration, flux_plan, near, rows

from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.run.pipeline import quantize
from tpec.statistics.calibration import Calibration, hash_layers, merge
from tpec.statistics.storage import open_calibration, save_calibration
from tpec.statistics.sums import GramAccumulator, SketchAccumulator
from tpec.statistics.workspace import Workspace

DATA = Path(__file__).parent.parent / "data"


def equal(first: Calibration, second: Calibration) -> bool:
    def parts(calibration: Calibration) -> list:
        return [[name, group.absmax, group.tokens, {part: tensor.tolist() for part, tensor in group.parts().items()}]
                for name, group in sorted(calibration.groups.items())]

    facts = [(dict(c.layers), c.layers_hash, c.source, c.runs, c.shapes) for c in (first, second)]
    return parts(first) == parts(second) and facts[0] == facts[1]


def test_file_keeps_what_it_was_made_of_but_for_a_little_noise(tmp_path: Path) -> None:
    calibration = both()
    path = save_calibration(calibration, tmp_path / "c.safetensors")
    again = open_calibration(path).in_memory()
    near(again.groups["a"].second_moment(), calibration.groups["a"].second_moment(), 0.01)
    near(again.groups["wide"].second_moment(), calibration.groups["wide"].second_moment(), 0.04)
    for name, stats_before in calibration.groups.items():
        found = again.groups[name]
        assert torch.equal(found.mean, stats_before.mean)
        assert (found.absmax, found.tokens, found.form) == (stats_before.absmax, stats_before.tokens, stats_before.form)
    # What a summary's codes lose goes to the diagonal.
    energies = calibration.groups["wide"].energies()
    torch.testing.assert_close(again.groups["wide"].energies(), energies, rtol=0.05, atol=0)
    assert names_in(tmp_path) == {"c.safetensors"}
    assert path.stat().st_size < 16 * 15 // 2 + 64 * 8 * 6 // 8 + 4 * (16 * 2 + 64 * 2) + 3000


def test_what_comes_from_a_file_goes_to_another_as_it_is(tmp_path: Path) -> None:
    """So passes lose nothing twice."""
    first = save_calibration(both(), tmp_path / "1.safetensors")
    second = save_calibration(open_calibration(first), tmp_path / "2.safetensors")
    assert sha256(first) == sha256(second)


def test_saved_again_from_memory_it_keeps_its_form(tmp_path: Path) -> None:
    path = save_calibration(both(), tmp_path / "1.safetensors")
    for number in range(2, 5):
        path = save_calibration(open_calibration(path).in_memory(), tmp_path / f"{number}.safetensors")
    last = open_calibration(path).in_memory()
    near(last.groups["a"].second_moment(), both().groups["a"].second_moment(), 0.01)
    near(last.groups["wide"].second_moment(), both().groups["wide"].second_moment(), 0.04)
    assert last.groups["wide"].form == both().groups["wide"].form


def test_what_lies_beside_a_large_mean_is_kept(tmp_path: Path) -> None:
    """Codes of the whole would be as coarse as the mean is large."""
    groups = {}
    for name, make in (("a", GramAccumulator), ("wide", SketchAccumulator)):
        accumulator = make(64, CPU, Workspace())
        accumulator.add(rows(2000, 64) + 30)
        groups[name] = accumulator.finish().in_memory()
    layers = {"a": "a", "w": "wide"}
    calibration = Calibration(groups, layers, hash_layers({"a": (4, 64), "w": (4, 64)}))
    kept = open_calibration(save_calibration(calibration, tmp_path / "c.safetensors"))
    exact = torch.cov(rows(2000, 64).double().T, correction=0)
    for name, error in (("a", 0.01), ("wide", 0.05)):
        mean = kept.groups[name].mean.double()
        covariance = kept.groups[name].second_moment().double() - torch.outer(mean, mean)
        assert (covariance - exact).norm() < error * exact.norm()


def test_file_of_version_1_is_read(tmp_path: Path) -> None:
    """Written before version 2: the matrices themselves, of `rows` as above."""
    old = open_calibration(DATA / "calibration_version_1.safetensors")
    assert (old.runs, old.layers["b"], old.outputs["b"].runs) == (2, "a", 2)
    x, wide, g = rows(500, 16).double(), rows(500, 64).double(), rows(200, 8, 3).double()
    torch.testing.assert_close(old.groups["a"].second_moment().double(), x.T @ x / 500, rtol=1e-5, atol=1e-5)
    near(old.groups["wide"].second_moment(), (wide.T @ wide / 500).float(), 0.05)
    torch.testing.assert_close(old.outputs["b"].second_moment()[1].double(), (g.T @ g / 200)[4:, 4:], rtol=1e-5,
                               atol=1e-5)
    # It can be written anew, and be added to.
    renewed = open_calibration(save_calibration(old, tmp_path / "renewed.safetensors"))
    for calibration in (renewed, merge(old, both()), merge(both(), old), merge(old, renewed)):
        saved = save_calibration(calibration, tmp_path / "saved.safetensors", overwrite=True)
        for name, error in (("a", 0.01), ("wide", 0.06)):
            exact = old.groups[name].second_moment()
            near(open_calibration(saved).groups[name].second_moment(), exact, error)
    near(renewed.outputs["b"].second_moment()[0], old.outputs["b"].second_moment()[0], 0.05)


def test_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_text("precious")
    with pytest.raises(TpecError, match="exists already"):
        save_calibration(both(), path)
    assert path.read_text() == "precious"
    save_calibration(both(), path, overwrite=True)
    assert open_calibration(path).runs == 2


def test_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TpecError, match="cannot be written"):
        save_calibration(both(), tmp_path / "none" / "c.safetensors")


def test_impossible_name_is_one_sentence(tmp_path: Path) -> None:
    for name in ("n" * 300, "n" * 250, "c.safetensors/c"):
        (tmp_path / "c.safetensors").write_bytes(b"")
        with pytest.raises(TpecError, match="cannot be written: (File name too long|Not a directory)"):
            save_calibration(both(), tmp_path / name)
    (tmp_path / "dead").symlink_to("nowhere")
    with pytest.raises(TpecError, match="dead is a link that points nowhere"):
        save_calibration(both(), tmp_path / "dead", overwrite=True)
    assert names_in(tmp_path) == {"c.safetensors", "dead"}


def test_file_that_appears_while_a_calibration_is_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(TpecError, match="c.safetensors exists already"):
        save_calibration(both(), path, on_part=lambda done, count: path.write_text("theirs"))
    assert path.read_text() == "theirs"
    assert names_in(tmp_path) == {"c.safetensors"}


def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8k") as folder:
        (folder / "filler").write_bytes(bytes(8192))
        with pytest.raises(TpecError, match="is full: make room"):
            save_calibration(both(), folder / "c.safetensors")
        assert names_in(folder) == {"filler"}


def test_file_without_shapes_is_read(tmp_path: Path) -> None:
    """Earlier versions wrote their hash alone."""
    path = save_calibration(both(), tmp_path / "c.safetensors")
    damage(path, lambda tensors, metadata: metadata.pop("shapes"))
    old = open_calibration(path).in_memory()
    assert old.shapes == {} and old.layers == both().layers
    assert merge(old, both()).shapes == merge(both(), old).shapes == both().shapes


def damage(path: Path, change) -> None:
    tensors, metadata = load(path), dict(open_checkpoint(path).metadata)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def facts(change):
    def apply(tensors: dict, metadata: dict) -> None:
        value = json.loads(metadata["facts"])
        metadata["facts"] = json.dumps(change(value))

    return apply


def put(name: str, value: torch.Tensor):
    return lambda tensors, metadata: tensors.update({name: value})


DAMAGE = {
    "no facts": lambda t, m: m.pop("facts"),
    "facts not JSON": lambda t, m: m.update(facts="{"),
    "facts deeply nested": lambda t, m: m.update(facts="[" * 100_000),
    "facts a list": facts(lambda value: [1]),
    "fact a number": facts(lambda value: {"a": 1}),
    "no absmax": facts(lambda value: {name: {"tokens": 1} for name in value}),
    "absmax a word": facts(lambda value: {name: fact | {"absmax": "x"} for name, fact in value.items()}),
    "absmax NaN": facts(lambda value: {name: fact | {"absmax": float("nan")} for name, fact in value.items()}),
    "tokens negative": facts(lambda value: {name: fact | {"tokens": -5} for name, fact in value.items()}),
    "tokens zero": facts(lambda value: {name: fact | {"tokens": 0} for name, fact in value.items()}),
    "group lost": facts(lambda value: {"a": value["a"]}),
    "layers a list": lambda t, m: m.update(layers="[1]"),
    "layers of lists": lambda t, m: m.update(layers='{"a": []}'),
    "no layers": lambda t, m: m.update(layers="{}", facts="{}"),
    "runs a word": lambda t, m: m.update(runs="many"),
    "shapes a list": lambda t, m: m.update(shapes="[1]"),
    "shapes of another model": lambda t, m: m.update(shapes='{"a": [4, 17]}'),
    "shape a number": lambda t, m: m.update(shapes='{"a": 4}'),
    "no hash": lambda t, m: m.pop("layers_hash"),
    "no mean": lambda t, m: t.pop("a.mean"),
    "no pivots": lambda t, m: t.pop("a.pivots"),
    "no codes": lambda t, m: t.pop("wide.codes"),
    "no scales": lambda t, m: t.pop("wide.scales"),
    "no rest": lambda t, m: t.pop("wide.rest"),
    "no rank": facts(lambda value: {name: {"absmax": 1.0, "tokens": 1} for name in value}),
    "rank of all": facts(lambda value: {name: fact | {"rank": 65} for name, fact in value.items()}),
    "rank negative": facts(lambda value: {name: fact | {"rank": -1} for name, fact in value.items()}),
    "codes too few": put("a.codes", torch.ones(1, 64, dtype=torch.int8)),
    "codes of floats": put("a.codes", torch.ones(2, 64)),
    "scales in float32": put("a.scales", torch.ones(2)),
    "pivots a matrix": put("a.pivots", torch.ones(16, 16)),
    "mean too long": put("a.mean", torch.ones(17)),
    "mean a matrix": put("a.mean", torch.ones(16, 2)),
    "mean a scalar": put("a.mean", torch.ones(())),
    "mean in bf16": put("a.mean", torch.ones(16).bfloat16()),
    "mean of integers": put("a.mean", torch.ones(16, dtype=torch.int64)),
    "rest too short": put("wide.rest", torch.ones(3)),
    "NaN pivots": put("a.pivots", torch.full((16,), float("nan"))),
    "infinite scales": put("wide.scales", torch.full((8,), float("inf"), dtype=torch.bfloat16)),
    "infinite mean": put("a.mean", torch.full((16,), float("inf"))),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_file_is_refused(tmp_path: Path, case: str) -> None:
    path = save_calibration(both(), tmp_path / "c.safetensors")
    damage(path, DAMAGE[case])
    with pytest.raises(TpecError, match="c.safetensors is damaged") as caught:
        open_calibration(path).in_memory()
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TpecError, match="is not a calibration file"):
        open_calibration(save_flux(tmp_path)).in_memory()
    path = save_calibration(both(), tmp_path / "c.safetensors")
    damage(path, lambda t, m: m.update(version="7"))
    with pytest.raises(TpecError, match="version 7"):
        open_calibration(path).in_memory()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TpecError, match="cut short"):
        open_calibration(path).in_memory()
    with pytest.raises(TpecError, match="There is no file"):
        open_calibration(tmp_path / "none").in_memory()


def test_opened_file_gives_what_is_loaded_and_little_stays_in_memory(tmp_path: Path) -> None:
    path = save_calibration(both(), tmp_path / "c.safetensors")
    opened, loaded = open_calibration(path), open_calibration(path).in_memory()
    assert equal(opened, loaded)
    assert opened.nbytes == loaded.nbytes
    for name, group in loaded.groups.items():
        assert torch.equal(opened.groups[name].second_moment(CPU), group.second_moment(CPU))
        assert torch.equal(opened.groups[name].energies(), group.energies())
        held = [value for value in vars(opened.groups[name]).values() if isinstance(value, torch.Tensor)]
        assert [part.numel() for part in held] == [group.width]
    assert equal(merge(opened, opened), merge(loaded, loaded))
    assert open_calibration(path).digest() == opened.digest() != loaded.digest()


def test_opened_file_is_not_the_one_that_took_its_name(tmp_path: Path) -> None:
    path = save_calibration(both(), tmp_path / "c.safetensors")
    opened = open_calibration(path)
    if os.name == "posix":
        save_calibration(both(seed=1), path, overwrite=True)
    near(opened.groups["a"].second_moment(), both().groups["a"].second_moment(), 0.01)


def test_damage_found_while_quantizing_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    path = save_calibration(flux_calibration(plan), tmp_path / "c.safetensors")
    name = next(name for name in load(path) if name.endswith(".pivots"))
    damage(path, lambda tensors, metadata: tensors[name].fill_(float("nan")))
    before = names_in(tmp_path)
    with pytest.raises(TpecError, match=rf"c.safetensors is damaged \('{name}' is not finite\): collect"):
        quantize(plan, tmp_path / "q", calibration=open_calibration(path))
    assert names_in(tmp_path) == before


MEASURED = """
import resource, sys, torch
from torch.nn import Linear
from tpec.statistics.calibration import merge
from tpec.statistics.storage import open_calibration, save_calibration
from tpec.statistics.watching import Collector

def collected(seed):
    layers = {f"layer{at}": Linear(1024, 2) for at in range(40)}
    with Collector(layers) as collector, torch.no_grad():
        for at, layer in enumerate(layers.values()):
            layer(torch.randn(64, 1024, generator=torch.Generator().manual_seed(seed + at)))
    return collector.finish({name: (2, 1024) for name in layers})

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

first, second, both = (f"{sys.argv[1]}/{name}.safetensors" for name in ("first", "second", "both"))
save_calibration(collected(0), first)
sums = collected(40)
before = peak()
save_calibration(sums, second)
save_calibration(merge(open_calibration(first), sums), both)
print(sums.nbytes >> 20, peak() - before)
"""


def test_sums_become_a_file_and_are_added_to_one_group_by_group(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    process = python(MEASURED, [tmp_path])
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    sums, more = map(int, out.split())
    assert sums >= 160
    assert more < sums / 3, f"{more} MB on top of {sums} MB of sums"
    parts = [open_calibration(tmp_path / f"{name}.safetensors").stats("layer7") for name in ("first", "second", "both")]
    sum_of_two = (parts[0].second_moment() + parts[1].second_moment()) / 2
    assert (parts[2].second_moment() - sum_of_two).norm() < 0.01 * sum_of_two.norm()
    assert parts[2].tokens == 128
