"""Which device computes, from what the user says."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .errors import TpecError, first_line, is_out_of_memory

log = logging.getLogger(__name__)


@contextmanager
def fast_products(devices: Sequence[torch.device]) -> Iterator[None]:
    """Allow TF32 matrix products while a CUDA run lasts.

    They steer rounding decisions, where a relative error of 1e-3 moves near-ties only (`benchmarks/speed.py --exact`
    compares losses and times). One setting for a whole run keeps the bytes the same whatever the number of lanes.
    """
    if all(device.type != "cuda" for device in devices):
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def load_libraries(devices: Sequence[torch.device]) -> None:
    """Let PyTorch load its linear algebra for GPUs, which it does at the first use and not from two threads at once."""
    device = next((device for device in devices if device.type == "cuda"), None)
    if device is None:
        return
    try:
        torch.linalg.cholesky_ex(torch.ones(1, 1, device=device))
    except RuntimeError as error:
        # What does not fit here will not fit in the layers, which have a way to go on.
        if not is_out_of_memory(error):
            raise


@contextmanager
def workspaces_freed(devices: Sequence[torch.device]) -> Iterator[None]:
    """Give back afterwards the scratch memory that cuBLAS holds of all threads and streams, also after an error.

    PyTorch keeps 32 MiB (on Hopper) for every pair of them ever used. A run has streams of its own: without this each
    would leave more VRAM taken than the one before. Sampling with gradients uses a thread of autograd's.
    """
    try:
        yield
    finally:
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear is not None and any(device.type == "cuda" for device in devices):
            clear()


def host_buffer(items: int, dtype: torch.dtype) -> torch.Tensor:
    """Host memory [items] for copies from and to a GPU: pinned, or plain (and slower) where no more can be pinned."""
    with torch.inference_mode(False):
        try:
            return torch.empty(items, dtype=dtype, pin_memory=True)
        except RuntimeError as error:
            log.warning("memory cannot be pinned (%s): copies take longer", first_line(error))
            return torch.empty(items, dtype=dtype)


def choose_devices(wanted: str, rank: int = 0) -> tuple[torch.device, ...]:
    """`auto`, `cpu`, `cuda`, `cuda:1`, or several separated by commas. Raises TpecError for one not there.

    Under torchrun, rank r takes the r-th GPU for `auto` and `cuda`.
    """
    if wanted == "auto":
        count, why = _gpus()
        if count:
            return (torch.device("cuda", rank % count),)
        if why:
            log.warning("No GPU can be used (%s): the CPU computes, which takes longer.", why)
        return (torch.device("cpu"),)
    return tuple(_device(name.strip(), rank) for name in wanted.split(","))


def _gpus() -> tuple[int, str]:
    """How many CUDA GPUs PyTorch can use, and what it says of those that it cannot, '' for nothing.

    It would say so (memory is short, the driver is too old) in a Python warning of several lines, without what follows.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    texts = (str(one.message).partition("(Triggered internally")[0] for one in said)
    return count, "; ".join(" ".join(text.split()).rstrip(".") for text in texts)


def _device(name: str, rank: int) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TpecError(f"There is no device '{name}': use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda":
        count, why = _gpus()
        index = rank % max(count, 1) if device.index is None else device.index
        if index >= count:
            because = f" ({why})" if why else ""
            raise TpecError(f"Device {name} is not there: this PyTorch sees {count} CUDA GPU(s){because}; use --device "
                            "cpu.")
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise TpecError(f"Device {name} is not supported: use auto, cpu, cuda or cuda:N.")
    return device
