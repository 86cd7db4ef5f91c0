"""Statistics of real inputs: merging, their file, what they do to a run, and that foreign ones are refused."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import HIDDEN, generator, load, names_in, python, save_flux, sha256, small_disk

from tpec.check.verify import verify
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import Plan, make_plan
from tpec.rounding.grid import decode
from tpec.run.fit import check_calibration
from tpec.run.pipeline import quantize
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration, hash_layers, merge
from tpec.statistics.inputs import HeldInputs, Summary
from tpec.statistics.storage import open_calibration, save_calibration
from tpec.statistics.sums import GramAccumulator, SketchAccumulator
from tpec.statistics.workspace import Workspace

CPU = torch.device("cpu")
DATA = Path(__file__).parent.parent / "data"
LAYER = "single_blocks.0.linear1"


def rows(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    source = generator(seed)
    mixing = torch.randn(4, width, generator=generator(99))
    return torch.randn(tokens, 4, generator=source) @ mixing + 0.1 * torch.randn(tokens, width, generator=source) + 0.5


def stats(width: int, tokens: int = 2000, seed: int = 0, sketch: bool = False) -> HeldInputs:
    accumulator = (SketchAccumulator if sketch else GramAccumulator)(width, CPU, Workspace())
    accumulator.add(rows(tokens, width, seed))
    return accumulator.finish().in_memory()


def both(seed: int = 0, tokens: int = 500) -> Calibration:
    groups = {"a": stats(16, tokens, seed), "wide": stats(64, tokens, seed, sketch=True)}
    shapes = {"a": (4, 16), "b": (8, 16), "w": (4, 64), "unseen": (3, 3)}
    layers = {"a": "a", "b": "a", "w": "wide"}
    return Calibration(groups, layers, hash_layers(shapes), "m.safetensors", 2, shapes=shapes)


def equal(first: Calibration, second: Calibration) -> bool:
    def parts(calibration: Calibration) -> list:
        return [[name, group.absmax, group.tokens, {part: tensor.tolist() for part, tensor in group.parts().items()}]
                for name, group in sorted(calibration.groups.items())]

    facts = [(dict(c.layers), c.layers_hash, c.source, c.runs, c.shapes) for c in (first, second)]
    return parts(first) == parts(second) and facts[0] == facts[1]


def near(kept: torch.Tensor, exact: torch.Tensor, error: float) -> None:
    torch.testing.assert_close(kept, kept.mT)
    assert (kept - exact).norm() < error * exact.norm()
    assert torch.linalg.eigvalsh(kept.double()).min() > -1e-5 * exact.diagonal().mean(), "positive by its making"


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


def test_merge_is_that_of_all_rows() -> None:
    first, second = both(0, 300), both(1, 900)
    merged = merge(first, second)
    everything = torch.cat([rows(300, 16, 0), rows(900, 16, 1)]).double()
    gram = merged.groups["a"].second_moment().double()
    assert torch.allclose(gram, everything.T @ everything / 1200, rtol=1e-4, atol=1e-4)
    assert torch.allclose(merged.groups["a"].mean.double(), everything.mean(0), atol=1e-5)
    assert (merged.groups["a"].tokens, merged.runs) == (1200, 4)
    assert merged.groups["a"].absmax == everything.abs().max().float().item()
    wide = torch.cat([rows(300, 64, 0), rows(900, 64, 1)]).double()
    moment, exact = merged.groups["wide"].second_moment().double(), wide.T @ wide / 1200
    assert torch.allclose(moment.diagonal(), exact.diagonal(), rtol=1e-3)
    assert (moment - exact).norm() / exact.norm() < 0.05


def test_file_without_shapes_is_read(tmp_path: Path) -> None:
    """Earlier versions wrote their hash alone."""
    path = save_calibration(both(), tmp_path / "c.safetensors")
    damage(path, lambda tensors, metadata: metadata.pop("shapes"))
    old = open_calibration(path).in_memory()
    assert old.shapes == {} and old.layers == both().layers
    assert merge(old, both()).shapes == merge(both(), old).shapes == both().shapes


def test_merge_refuses_other_models() -> None:
    first = both()
    for second in (replace(first, layers_hash="x"), replace(first, layers={"a": "a"}),
                   replace(first, groups={"a": stats(32), "wide": first.groups["wide"]}),
                   replace(first, groups={"a": stats(16, sketch=True), "wide": first.groups["wide"]})):
        with pytest.raises(TpecError, match="two calibrations"):
            merge(first, second)


def test_group_that_is_missing_is_refused() -> None:
    with pytest.raises(TpecError, match="names a group 'gone'"):
        Calibration({"a": stats(8)}, {"x": "gone"}, "h")


def test_layer_hash_follows_names_and_shapes() -> None:
    plain = hash_layers({"a": (2, 3), "b": (4, 5)})
    assert plain == hash_layers([("b", (4, 5)), ("a", (2, 3))])
    assert len({plain, hash_layers({"a": (2, 3)}), hash_layers({"a": (3, 2), "b": (4, 5)}),
                hash_layers({"c": (2, 3), "b": (4, 5)})}) == 4


def test_digest_follows_the_content() -> None:
    calibration = both()
    other = both(seed=1)
    wide = calibration.groups["wide"]
    vectors, values, rest = (part.clone() for part in wide.moment)
    vectors[0, 0] += 1
    turned = replace(calibration, groups=calibration.groups | {
        "wide": replace(wide, moment=Summary(vectors, values, rest))})
    assert len({c.digest() for c in (calibration, other, turned, replace(calibration, layers={"a": "a"}))}) == 4


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


def flux_plan(folder: Path, **settings: object) -> Plan:
    return make_plan(open_checkpoint(save_flux(folder)), Settings(**settings))


def flux_calibration(plan: Plan, only: str = "", tokens: int = 4000) -> Calibration:
    layers = {layer.linear_in_model: layer.shape[1] for layer in plan.of("quantize") if only in layer.linear_in_model}
    groups = {str(width): stats(width, tokens) for width in set(layers.values())}
    shapes = {layer.linear_in_model: layer.shape for layer in plan.of("quantize")} | {"img_in": (HIDDEN, 64)}
    return Calibration(groups, {name: str(width) for name, width in layers.items()}, hash_layers(shapes), shapes=shapes)


def output_error(source: Path, result: Path, layer: str) -> float:
    """Relative error of the layer's output, bias included, on inputs held out."""
    before, after = load(source), load(result)
    weight = before[f"{layer}.weight"].float()
    x = rows(3000, weight.shape[1], seed=5)
    restored = decode(after[f"{layer}.weight"], after[f"{layer}.weight_scale"])
    exact = x @ weight.T + before[f"{layer}.bias"].float()
    return ((x @ restored.T + after[f"{layer}.bias"].float() - exact).norm() / exact.norm()).item()


def test_calibrated_layers_are_much_better_on_such_inputs(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    near = make_plan(plan.checkpoint, Settings(method="nearest"))
    report = quantize(plan, tmp_path / "c", calibration=flux_calibration(plan))
    quantize(near, tmp_path / "n")
    assert {layer.metric for layer in report.layers} == {"activation"}
    source = tmp_path / "model.safetensors"
    for layer in (LAYER, "double_blocks.0.img_mlp.2"):
        assert output_error(source, tmp_path / "c", layer) < 0.6 * output_error(source, tmp_path / "n", layer)
    assert verify(source, tmp_path / "c").ok
    assert all(layer.principal_after is None for layer in report.layers)


def test_bias_takes_the_mean_error_up(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    quantize(plan, tmp_path / "c", calibration=flux_calibration(plan))
    before, after = load(tmp_path / "model.safetensors"), load(tmp_path / "c")
    mean = stats(HIDDEN, 4000).mean
    restored = decode(after[f"{LAYER}.weight"], after[f"{LAYER}.weight_scale"])
    error = (restored - before[f"{LAYER}.weight"].float()) @ mean
    shift = after[f"{LAYER}.bias"].float() - before[f"{LAYER}.bias"].float()
    assert shift.abs().max() > 0
    assert (error + shift).norm() < 0.1 * error.norm()


def test_calibration_of_some_layers(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    report = quantize(plan, tmp_path / "c", calibration=flux_calibration(plan, "single_blocks"))
    assert {layer.name.split(".")[0] for layer in report.layers if layer.metric == "activation"} == {"single_blocks"}
    assert {layer.metric for layer in report.layers if layer.name.startswith("double")} == {"weight"}


def test_lanes_give_the_same_bytes_with_calibration(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    calibration = flux_calibration(plan)
    quantize(plan, tmp_path / "a", calibration=calibration)
    quantize(plan, tmp_path / "b", calibration=calibration, devices=("cpu", "cpu"))
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


def test_resume_with_other_statistics_is_refused(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)

    def stop(event) -> None:
        if event.index == 4:
            raise KeyboardInterrupt

    calibration = flux_calibration(plan)
    with pytest.raises(KeyboardInterrupt):
        quantize(plan, tmp_path / "q", calibration=calibration, progress=stop, resume=True, sync_bytes=1)
    with pytest.raises(TpecError, match="a setting changed"):
        quantize(plan, tmp_path / "q", calibration=flux_calibration(plan, tokens=3000), resume=True)
    with pytest.raises(TpecError, match="a setting changed"):
        quantize(plan, tmp_path / "q", resume=True)
    quantize(plan, tmp_path / "q", calibration=calibration, resume=True)
    quantize(plan, tmp_path / "whole", calibration=calibration)
    assert sha256(tmp_path / "q") == sha256(tmp_path / "whole")


def test_calibration_of_another_model_is_refused(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    foreign = replace(flux_calibration(plan), layers={"other.layer": str(HIDDEN)})
    narrow = Calibration({"g": stats(16)}, {LAYER: "g"}, "h")
    for calibration, words in ((foreign, "knows none of the 13 layers"), (narrow, "reads 16 values, that of")):
        with pytest.raises(TpecError, match=f"calibration is of another model.*{words}"):
            quantize(plan, tmp_path / "q", calibration=calibration)
        assert names_in(tmp_path) == {"model.safetensors"}
    assert check_calibration(plan, flux_calibration(plan)) == tuple(layer.linear for layer in plan.of("quantize"))


def test_calibration_of_a_smaller_relative_is_refused(tmp_path: Path) -> None:
    """Its layers have the names and widths of some of the model's."""
    small = flux_calibration(flux_plan(tmp_path))
    plan = make_plan(open_checkpoint(save_flux(tmp_path, "large.safetensors", single=2)), Settings())
    with pytest.raises(TpecError, match="another model: that one had no layer 'single_blocks.1.*large.safetensors has"):
        quantize(plan, tmp_path / "q", calibration=small)
    report = quantize(plan, tmp_path / "q", calibration=replace(small, shapes={}))
    assert "3 layers have no statistics" in report.notes[0]
    included = make_plan(plan.checkpoint, Settings(include="single_blocks.1"))
    assert len(check_calibration(included, small)) == 13


def test_calibration_of_another_output_width_is_refused(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    calibration = flux_calibration(plan)
    other = replace(calibration, shapes=calibration.shapes | {LAYER: (768, HIDDEN)})
    with pytest.raises(TpecError, match=f"'{LAYER}' is 768 x 128, that of model.safetensors 896 x 128"):
        quantize(plan, tmp_path / "q", calibration=other)
    assert names_in(tmp_path) == {"model.safetensors"}


def test_layers_without_inputs_are_no_other_model(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    calibration = flux_calibration(plan)
    seen = {name: group for name, group in calibration.layers.items() if name != LAYER}
    assert len(check_calibration(plan, replace(calibration, layers=seen))) == 12


def test_calibration_fits_the_full_checkpoint_too(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in load(plan.checkpoint.path).items()}
    save_file(tensors | {"vae.decoder.conv_in.weight": torch.zeros(2, 2, 3, 3)}, tmp_path / "full")
    full = make_plan(open_checkpoint(tmp_path / "full"), Settings())
    quantize(full, tmp_path / "q", calibration=flux_calibration(plan, tokens=6000))
    record = json.loads(open_checkpoint(tmp_path / "q").metadata["tpec_calibrated"])
    assert set(record) == {layer.linear for layer in full.of("quantize")}
    assert verify(tmp_path / "full", tmp_path / "q").corrected == 13


@pytest.mark.parametrize(("tokens", "corrected"), [(6000, 13), (200, 0)])
def test_header_says_what_was_calibrated(tmp_path: Path, tokens: int, corrected: int) -> None:
    """Few tokens do not steer the bias, so it stays."""
    plan = flux_plan(tmp_path)
    calibration = flux_calibration(plan, tokens=tokens)
    quantize(plan, tmp_path / "q", calibration=calibration)
    record = json.loads(open_checkpoint(tmp_path / "q").metadata["tpec_calibrated"])
    assert set(record) == {layer.linear for layer in plan.of("quantize")}
    assert sum(length is not None for length in record.values()) == corrected
    if corrected:
        assert record[LAYER] == pytest.approx(calibration.stats(LAYER).mean.norm().item(), rel=1e-3)
    result = verify(tmp_path / "model.safetensors", tmp_path / "q")
    assert result.ok and result.corrected == corrected
    for settings in (Settings(), Settings(method="nearest")):
        quantize(make_plan(plan.checkpoint, settings), tmp_path / "free", overwrite=True)
        assert open_checkpoint(tmp_path / "free").metadata["tpec_calibrated"] == "{}"


def test_input_scales_for_fp8_matmul(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path, matmul="fp8")
    calibration = flux_calibration(plan)
    spiky = replace(calibration.groups[str(HIDDEN)], absmax=1e9)
    calibration = replace(calibration, groups=calibration.groups | {"spiky": spiky},
                          layers={**calibration.layers, LAYER: "spiky"})
    quantize(plan, tmp_path / "q", calibration=calibration)
    tensors = load(tmp_path / "q")
    name = "double_blocks.0.img_attn.qkv"
    assert tensors[f"{name}.input_scale"].item() == pytest.approx(calibration.groups[str(HIDDEN)].absmax / 448)
    assert "full_precision_matrix_mult" not in bytes(tensors[f"{name}.comfy_quant"].tolist()).decode()
    assert f"{LAYER}.input_scale" not in tensors
    assert "full_precision_matrix_mult" in bytes(tensors[f"{LAYER}.comfy_quant"].tolist()).decode()
    assert verify(tmp_path / "model.safetensors", tmp_path / "q").ok


def test_calibration_by_the_command_line(tmp_path: Path) -> None:
    from tpec.command.cli import main

    plan = flux_plan(tmp_path)
    path = save_calibration(flux_calibration(plan), tmp_path / "c.safetensors")
    source, output = str(plan.checkpoint.path), str(tmp_path / "q.safetensors")
    assert main(["quantize", source, "-o", output, "--calibration", str(path), "--quiet"]) == 0
    quantize(plan, tmp_path / "direct", calibration=open_calibration(path).in_memory())
    assert sha256(tmp_path / "q.safetensors") == sha256(tmp_path / "direct")


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
