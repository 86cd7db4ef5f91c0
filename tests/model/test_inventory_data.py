"""The reader and writer of tests/data."""

from pathlib import Path

import inventory
import pytest

FILES = ["diffusion.txt", "encoders.txt", "loaders.txt"]


def test_patterns_stand_for_all_their_names() -> None:
    assert list(inventory.expand("a.{0-2,5}.b.{1}")) == ["a.0.b.1", "a.1.b.1", "a.2.b.1", "a.5.b.1"]


def test_numbered_blocks_are_collapsed_and_come_back() -> None:
    tensors: inventory.Tensors = {}
    for block in range(3):
        tensors[f"b.{block}.w.weight"] = ((4, 8), "linear")
        tensors[f"b.{block}.w.bias"] = ((4,), "bias")
        tensors[f"b.{block}.odd.bias"] = ((7,), "parameter")
    assert inventory.collapse(tensors) == ["b.{0-2}.w.weight+bias 4x8 linear", "b.{0-2}.odd.bias 7 parameter"]


@pytest.mark.parametrize("file", FILES)
def test_the_committed_files_come_back_as_they_are(file: str, tmp_path: Path) -> None:
    models = inventory.read(inventory.DATA / file)
    bare = [inventory.Model(m.name, {k: v for k, v in m.facts.items() if k != "like"},
                            m.tensors) for m in models.values()]
    inventory.write(tmp_path / file, bare, "again")
    again = inventory.read(tmp_path / file)
    assert {name: model.tensors for name, model in again.items()} == {name: model.tensors for name,
                                                                      model in models.items()}


def test_sizes_of_known_models() -> None:
    flux = inventory.read(inventory.DATA / "diffusion.txt")["flux1-dev"]
    assert len(flux.tensors) == 780
    assert len(flux.modules("linear")) == 314
