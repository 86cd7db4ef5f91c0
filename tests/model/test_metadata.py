"""Header metadata from strangers: text that should be JSON, and is anything."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tpec.check.inspect import inspect
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.origin import origin_of
from tpec.model.template import recipe_like
from tpec.statistics.storage import open_calibration

numbers = st.sampled_from(["1", "-1", "0", "1e999", "-1e999", "NaN", "9" * 400, "null", "[]", "{}", '"x"', "1e308",
                           "true"])
keys = st.sampled_from(["layers", "a", "origin", "changed", "model", "loras", "dropped"])
json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3), max_leaves=5).map(json.dumps)
texts = json_texts | st.text(max_size=9) | st.just("[" * 100_000) | st.just("9" * 5000)


@given(absmax=numbers, tokens=numbers, layers=st.sampled_from(['{"a": "g"}', "{}", "[]", "1e999"]) | texts)
@example(absmax="1", tokens="1e999", layers='{"a": "g"}')
@example(absmax="9" * 400, tokens="1", layers='{"a": "g"}')
@settings(max_examples=150)
def test_calibration_of_anything_is_one_sentence(tmp_path: Path, absmax: str, tokens: str, layers: str) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"g.gram": torch.zeros(3)}, path, {
        "kind": "tpec_calibration", "version": "1", "facts": f'{{"g": {{"absmax": {absmax}, "tokens": {tokens}}}}}',
        "layers": layers, "layers_hash": "", "runs": tokens})
    with pytest.raises(TpecError):
        open_calibration(path)


@given(told=texts, number=numbers)
@example(told="", number="1e999")
@example(told="", number="9" * 400)
@settings(max_examples=150)
def test_origin_of_anything_is_an_origin_or_none(told: str, number: str) -> None:
    origin_of({"tpec": told})
    origin_of({"tpec": f'{{"origin": {{"model": "m", "changed": {number}, "loras": [{number}]}}}}'})


@given(table=texts)
@settings(max_examples=60)
def test_inspecting_any_metadata_is_text_or_one_sentence(tmp_path: Path, table: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a.weight": torch.zeros(2, 2)}, path, {"_quantization_metadata": table, "tpec": table})
    for look in (inspect, lambda path: recipe_like(open_checkpoint(path))):
        try:
            look(path)
        except TpecError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize("content", [torch.tensor([1.5]), torch.tensor([300]), torch.tensor([-1]), torch.zeros(0),
                                     torch.tensor([True]), torch.zeros(2, 2, dtype=torch.uint8)])
def test_template_whose_descriptions_are_no_text_says_nothing(tmp_path: Path, content: torch.Tensor) -> None:
    path = tmp_path / "t.safetensors"
    save_file({"a.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn), "a.weight_scale": torch.tensor(1.0),
               "a.comfy_quant": content}, path)
    (choice,) = recipe_like(open_checkpoint(path)).layers.values()
    assert choice.matmul == "full_precision"

