"""A calibration knows the weights that it was made with, whatever they are cast to."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import generator, load, save_flux

from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.run.pipeline import quantize
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration, hash_layers, merge
from tpec.statistics.inputs import Gram, HeldInputs
from tpec.statistics.storage import open_calibration, save_calibration
from tpec.statistics.weights import other_weights, sample_weights, sampled_layers

WORDS = "relative of this model"


def of_model(path: Path) -> Calibration:
    """Statistics of every block Linear of a file, as if it had been sampled."""
    tensors = load(path)
    shapes = {name.removesuffix(".weight"): tuple(tensor.shape) for name, tensor in tensors.items()
              if "blocks." in name and tensor.ndim == 2}
    groups = {name: HeldInputs(torch.zeros(width), 1.0, 1000, Gram(torch.eye(width)))
              for name, (_, width) in shapes.items()}
    weights = sample_weights(sampled_layers(shapes), lambda name: tensors[f"{name}.weight"])
    return Calibration(groups, {name: name for name in shapes}, hash_layers(shapes), weights=weights)


def notes(model: Path, calibration: Calibration, tmp_path: Path) -> str:
    plan = make_plan(open_checkpoint(model), Settings())
    return "\n".join(quantize(plan, tmp_path / "out.safetensors", calibration=calibration, overwrite=True).notes)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_flux(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_same_weights_in_any_dtype_are_no_relative(tmp_path: Path, model: Path, dtype: torch.dtype) -> None:
    cast = tmp_path / "cast.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load(model).items()}, cast)
    assert WORDS not in notes(cast, of_model(model), tmp_path)


def test_a_relative_is_used_and_the_report_says_so(tmp_path: Path, model: Path) -> None:
    tuned = tmp_path / "tuned.safetensors"
    tensors = load(model)
    for name, tensor in tensors.items():
        if "img_attn" in name and tensor.ndim == 2:
            change = torch.randn(tensor.shape, generator=generator(5)) * 0.05 * tensor.float().std()
            tensors[name] = (tensor.float() + change).to(tensor.dtype)
    save_file(tensors, tuned)
    text = notes(tuned, of_model(model), tmp_path)
    assert WORDS in text and "nobody has measured" in text


def test_files_keep_the_weights_and_older_ones_load(tmp_path: Path, model: Path) -> None:
    calibration = of_model(model)
    path = save_calibration(calibration, tmp_path / "new.safetensors")
    assert open_calibration(path).weights == calibration.weights != {}
    old = save_calibration(Calibration(calibration.groups, calibration.layers, calibration.layers_hash),
                           tmp_path / "old.safetensors")
    assert b'"weights"' not in old.read_bytes()[:20000]
    assert open_calibration(old).weights == {}
    assert WORDS not in notes(model, open_calibration(old), tmp_path)
    assert merge(open_calibration(old), open_calibration(path)).weights == calibration.weights


def test_few_values_of_layers_all_over_the_model() -> None:
    names = sampled_layers(f"blocks.{number}" for number in range(300))
    assert 16 <= len(names) <= 32 and len({name[:8] for name in names}) == 10
    found = sample_weights(["a"], lambda name: torch.arange(100.0).reshape(5, 20))
    assert found == {"a": tuple(map(float, range(40, 56)))}
    assert len(json.dumps(found)) < 200
    assert other_weights(found, {"a": tuple(value * 1.001 for value in found["a"])}) == []
    assert other_weights(found, {"a": tuple(value + 1 for value in found["a"])}) == ["a"]
    assert other_weights(found, {"b": (1.0,)}) == []
