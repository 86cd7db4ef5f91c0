"""Devices from what the user says."""

import logging
import warnings
from pathlib import Path

import pytest
import torch
from samples import save_flux

from tpec.command.cli import main
from tpec.device import choose_devices, fast_products
from tpec.errors import TpecError

CPU = torch.device("cpu")
needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")


def test_cpu_and_lists() -> None:
    assert choose_devices("cpu") == (CPU,)
    assert choose_devices("cpu, cpu") == (CPU, CPU)


@needs_none
def test_auto_without_a_gpu() -> None:
    assert choose_devices("auto") == (CPU,)
    assert choose_devices("auto", rank=3) == (CPU,)


@pytest.mark.parametrize(("name", "words"), [
    ("quantum", "no device 'quantum'"), ("", "no device ''"), ("cpu,", "no device ''"),
    ("cuda:x", "no device 'cuda:x'"), ("cuda:4096", "cuda:4096 is not there"), ("cuda:-2", "no device"),
    ("meta", "not supported"), ("cuda:99999999999999999999", "cuda:9")])
def test_devices_that_are_not_there(name: str, words: str) -> None:
    with pytest.raises(TpecError, match=words) as caught:
        choose_devices(name)
    assert "\n" not in str(caught.value)


@needs_none
def test_cuda_without_a_gpu_says_what_to_do() -> None:
    with pytest.raises(TpecError, match="sees 0 CUDA GPU.*--device cpu"):
        choose_devices("cuda")


def no_gpu_and_why() -> bool:
    """As PyTorch answers whose driver finds no memory."""
    warnings.warn("CUDA initialization: out of memory.\n  Setting the\navailable devices to be zero. (Triggered "
                  "internally at /pytorch/c10/cuda/CUDAFunctions.cpp:119.)", UserWarning, stacklevel=1)
    return False


def test_why_no_gpu_can_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
                                            recwarn: pytest.WarningsRecorder) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", no_gpu_and_why)
    with caplog.at_level(logging.WARNING):
        assert choose_devices("auto") == (CPU,)
    why = "CUDA initialization: out of memory. Setting the available devices to be zero"
    assert caplog.messages == [f"No GPU can be used ({why}): the CPU computes, which takes longer."]
    with pytest.raises(TpecError) as caught:
        choose_devices("cuda:0")
    assert str(caught.value) == ("Device cuda:0 is not there: this PyTorch sees 0 CUDA GPU(s) "
                                 f"({why}); use --device cpu.")
    assert not recwarn.list


@pytest.mark.parametrize("method", ["nearest", "tpec"])
def test_a_run_on_the_cpu_has_nothing_to_do_with_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      method: str) -> None:
    """Asking for them begins CUDA: time, memory, and warnings where it has none."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(asked.append("is_available")))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(asked.append("device_count") or ()))
    source, output = save_flux(tmp_path), tmp_path / "q.safetensors"
    assert main(["quantize", str(source), "-o", str(output), "--device", "cpu", "--method", method, "--keep-quality",
                 "2", "--report", str(tmp_path / "r.json")]) == 0
    assert main(["verify", str(source), str(output)]) == 0 == main(["inspect", str(source)])
    assert not asked


def test_products_stay_exact_on_the_cpu_and_are_restored() -> None:
    before = torch.get_float32_matmul_precision()
    with fast_products([CPU]):
        assert torch.get_float32_matmul_precision() == before
    with pytest.raises(KeyError), fast_products([torch.device("cuda")]):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before
