"""The demo: a model that the reference library reads, quantized and verified."""

from pathlib import Path

import pytest
import torch
from samples import load, names_in, same_bits

from tpec.command.cli import main
from tpec.command.demo import demo_tensors, flux_shapes
from tpec.files.checkpoint import open_checkpoint
from tpec.files.plain import write_safetensors
from tpec.model.families import detect


def test_shapes_are_those_of_flux() -> None:
    shapes = flux_shapes(3072, 19, 38, context=4096, pooled=768)
    assert shapes["double_blocks.18.img_attn.qkv.weight"] == (9216, 3072)
    assert shapes["single_blocks.37.linear1.weight"] == (21504, 3072)
    assert shapes["single_blocks.37.linear2.weight"] == (3072, 15360)
    assert shapes["txt_in.weight"] == (3072, 4096)
    assert shapes["final_layer.linear.weight"] == (64, 3072)
    count = sum(rows * (more[0] if more else 1) for rows, *more in shapes.values())
    # Flux schnell: 11.891 G parameters.
    assert count == 11_891_178_560


def test_writer_agrees_with_the_reference(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2).bfloat16(), "b": torch.tensor(2.0), "c": torch.zeros(0, 3),
               "d": torch.ones(3).bool(), "e": torch.randn(4, 6).mT, "f": torch.ones(2).to(torch.float8_e4m3fn)}
    path = tmp_path / "m.safetensors"
    write_safetensors(path, tensors, {"title": "x"})
    found = load(path)
    assert found.keys() == tensors.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())
    assert dict(open_checkpoint(path).metadata) == {"title": "x"}


def test_tensors_are_the_same_every_time_and_recognised(tmp_path: Path) -> None:
    first, second = demo_tensors(), demo_tensors()
    assert all(same_bits(first[name], second[name]) for name in first)
    write_safetensors(tmp_path / "m", first, {})
    assert detect("m", open_checkpoint(tmp_path / "m").tensors, "auto", "").family.name == "flux"


def test_demo_command_ends_with_a_verified_file_and_can_be_repeated(tmp_path: Path,
                                                                    capsys: pytest.CaptureFixture) -> None:
    for _ in range(2):
        assert main(["demo", "--folder", str(tmp_path / "new" / "folder")]) == 0
        out = capsys.readouterr().out
        assert "verified: " in out
        assert "lower than plain FP8" in out
    assert names_in(tmp_path / "new" / "folder") == {"demo_bf16.safetensors", "demo_fp8.safetensors"}
