"""What people and programs read about a run."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tpec.command.terminal import TerminalProgress
from tpec.files.naming import default_output
from tpec.run.progress import Progress
from tpec.run.report import LayerReport, Report

LAYER = LayerReport("a.b", (4, 8), 0.5, 0.02, 0.025, 0.0002, 0.0008, 0, "weight", 0, 1.5, 1e-3, 1e-7)


def report(*layers: LayerReport, **more: object) -> Report:
    plain = Report("m.safetensors", Path("/some/folder/q.safetensors"), "diffusion_models", "flux", "Flux: seen",
                   {"method": "tpec"}, layers, 7, 0, 1000, 520, 2.0, "cpu", {"read": 1.0, "compute": 1.0, "write": 0.5})
    return replace(plain, **more)


def test_ratios() -> None:
    assert LAYER.loss_ratio == pytest.approx(0.25)
    both = report(LAYER, replace(LAYER, loss=0.0008, relative_error=0.08))
    assert both.error_ratio == pytest.approx(math.sqrt(0.5))
    assert both.relative_error == pytest.approx(0.04)


def test_zero_layers_do_not_break_the_means() -> None:
    zero = replace(LAYER, loss=0.0, nearest_loss=0.0, relative_error=0.0)
    assert zero.loss_ratio == 1.0
    assert report(zero).relative_error == 0.0
    assert report(zero, LAYER).relative_error == pytest.approx(0.02)
    assert "a.b" in report(replace(LAYER, loss=0.0)).text()
    assert report(replace(LAYER, loss=0.0)).error_ratio == 1.0


def test_loss_of_nothing_may_come_out_slightly_negative() -> None:
    """What float32 leaves of zero: plots and tables show 0, where its root would be a complex number."""
    slight = replace(LAYER, loss=-1e-12)
    assert slight.loss_ratio < 0 and slight.error_ratio == 0.0
    assert LAYER.error_ratio == pytest.approx(0.5)
    assert "0.000" in report(slight).table()
    assert report(slight, LAYER).error_ratio == pytest.approx(0.5)


def test_text() -> None:
    text = report(LAYER, notes=("cuda:0 ran out of memory",), dropped=3).text()
    assert text.splitlines()[0].startswith("Rounding error 50 % lower than plain FP8")
    assert "1 layers in FP8, 7 tensors kept, 3 dropped" in text
    assert "(0.520 x), 2.0 s on cpu" in text
    assert "cuda:0 ran out of memory" in text
    assert "a.b" in text.splitlines()[-1]


@pytest.mark.parametrize(("layer", "settings", "words"), [
    (LAYER, {"method": "tpec"}, "Rounding error 50 % lower than plain FP8; calibrate for much less."),
    (replace(LAYER, metric="activation"), {"method": "tpec"}, "Rounding error 50 % lower than plain FP8."),
    (replace(LAYER, loss=0.0008), {"method": "tpec"}, "Rounding error as with plain FP8; calibrate for much less."),
    (replace(LAYER, metric="nearest"), {"method": "nearest"}, "Plain FP8 rounding, as asked for.")])
def test_headline_is_in_a_users_words(layer: LayerReport, settings: dict, words: str) -> None:
    assert report(layer, settings=settings).headline() == words
    assert report(layer, settings=settings).summary().splitlines()[0] == words


def test_worst_layers_are_named_in_order() -> None:
    layers = [replace(LAYER, name=f"blocks.{index}", loss=0.0001 * index) for index in range(1, 6)]
    assert [layer.name for layer in report(*layers).worst(2)] == ["blocks.5", "blocks.4"]
    assert LAYER.error == pytest.approx(0.0125)
    assert "Largest errors: blocks.5 (1.98 %), blocks.4" in report(*layers).summary()


def test_table_is_markdown_with_scales() -> None:
    head, rule, row = report(LAYER).table().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, rule, row)]
    assert cells[0] == ["layer", "shape", "scale", "error %", "plain %", "ratio", "metric"]
    assert all(set(cell) <= {"-", ":"} for cell in cells[1])
    assert cells[2] == ["a.b", "4x8", "0.5", "1.250", "2.500", "0.500", "weight"]
    assert len(head) == len(rule) == len(row)


def test_json_is_plain_and_names_no_folder() -> None:
    data = json.loads(json.dumps(report(LAYER).to_json(), allow_nan=False))
    assert data["output"] == "q.safetensors"
    assert "/some/folder" not in json.dumps(data)
    assert data["layers"][0]["shape"] == [4, 8]
    assert data["layers"][0]["loss_ratio"] == pytest.approx(0.25)
    assert data["layers"][0]["error_ratio"] == data["error_ratio"] == data["loss_ratio"] == pytest.approx(0.5)


def test_a_layer_comes_back_from_json() -> None:
    assert LayerReport.from_json(json.loads(json.dumps(LAYER.to_json()))) == LAYER


@pytest.mark.parametrize(("name", "expected"), [
    ("m.safetensors", "m_float8_e4m3fn_scaled_learned_svd.safetensors"),
    ("m.v1.safetensors", "m.v1_float8_e4m3fn_scaled_learned_svd.safetensors"),
    ("m.safetensors.index.json", "m_float8_e4m3fn_scaled_learned_svd.safetensors")])
def test_default_names(tmp_path: Path, name: str, expected: str) -> None:
    assert default_output(tmp_path / name, False) == tmp_path / expected
    assert default_output(tmp_path / name, True) == tmp_path / expected.replace("learned", "learned_nodistill")


def test_default_name_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model.v1"
    folder.mkdir()
    expected = "model.v1_float8_e4m3fn_scaled_learned_svd.safetensors"
    assert default_output(folder, False) == folder / expected
    monkeypatch.chdir(folder)
    assert default_output(Path("."), False).name == expected


def test_terminal_shows_layer_and_error(capsys: pytest.CaptureFixture) -> None:
    with TerminalProgress(enabled=True) as progress:
        progress(Progress(10.0, 10.0, "blocks.1", 1, 2, "error 0.02", 5.0))
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("100%", "layer 1/2", "blocks.1", "error 0.02", "5 s left"))
    with TerminalProgress(enabled=False) as progress:
        progress(Progress(1.0, 2.0, "a", 0, 1, ""))
    assert capsys.readouterr().err == ""
