"""Devices from what the user says."""

import pytest
import torch

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


def test_products_stay_exact_on_the_cpu_and_are_restored() -> None:
    before = torch.get_float32_matmul_precision()
    with fast_products([CPU]):
        assert torch.get_float32_matmul_precision() == before
    with pytest.raises(KeyError), fast_products([torch.device("cuda")]):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before
