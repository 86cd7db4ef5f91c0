"""ComfyUI's devices and memory for the engine: which there are, room on them, and the CPU when that is not enough."""

import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TypeVar

import comfy.model_management as memory
import torch

from ...tpec.errors import TpecError, is_out_of_memory

log = logging.getLogger(__name__)

#: The device combo's word for every GPU of this machine.
ALL_GPUS = "all GPUs"
Result = TypeVar("Result")


def gpus() -> list[str]:
    """The GPUs of this machine that the engine can use: none where ComfyUI itself computes on something else."""
    if memory.get_torch_device().type != "cuda":
        return []
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def device_choices() -> list[str]:
    """The device combo: ComfyUI's own choice, the CPU, and where there are several GPUs all of them or each."""
    several = gpus()
    return ["auto", "cpu", *([ALL_GPUS, *several] if len(several) > 1 else [])]


def torch_devices(choice: str) -> tuple[torch.device, ...]:
    """The devices that share the work. Raises TpecError when one is not there.

    `choice` is one of the combo's, or several devices separated by commas. `auto` is the CPU where PyTorch cannot hold
    float8 tensors on ComfyUI's own device (Apple, DirectML).
    """
    if choice == "auto":
        device = memory.get_torch_device()
        return (device if device.type in ("cpu", "cuda") else torch.device("cpu"),)
    there = gpus()
    names = there if choice == ALL_GPUS else [name.strip() for name in choice.split(",")]
    unknown = [name for name in names if name not in ("cpu", *there)]
    if unknown or not names:
        missing = f"no device '{unknown[0]}'" if unknown else "no GPU"
        raise TpecError(f"There is {missing} here: choose auto, {', '.join(['cpu', *there])}, or several of them "
                        "separated by commas.")
    return tuple(map(torch.device, names))


def make_room(nbytes: int, device: torch.device) -> None:
    """Have ComfyUI unload models until so many bytes are free on a device.

    What earlier prompts left to the garbage collector goes first: ComfyUI looks twice at each model that it has loaded,
    and fails when one is collected in between.
    """
    gc.collect()
    memory.free_memory(nbytes, device)


@contextmanager
def room_on(needs: Mapping[torch.device, int]) -> Iterator[None]:
    """Have ComfyUI unload models until the bytes needed are free on each device; give the cache back afterwards."""
    cards = {device: nbytes for device, nbytes in needs.items() if not memory.is_device_cpu(device)}
    for device, nbytes in cards.items():
        make_room(nbytes, device)
    try:
        yield
    finally:
        if cards:
            memory.soft_empty_cache()


def with_cpu_fallback(devices: Sequence[torch.device], need: Callable[[torch.device], int],
                      work: Callable[[Sequence[torch.device]], Result],
                      beside: Mapping[torch.device, int] = MappingProxyType({})) -> tuple[Result, str]:
    """Run `work(devices)`; when the memory of one is not enough even so, once more on the CPU.

    `need(device)` are the bytes that one share of the work takes there, `beside` what else it takes and where. Returns
    the result and a sentence about the fallback, '' when there was none.
    """
    needs: Counter[torch.device] = Counter(beside)
    for device in devices:
        needs[device] += need(device)
    # ComfyUI runs nodes in inference mode, which is per thread: tensors of the engine's own threads would not mix.
    with torch.inference_mode(False), torch.no_grad():
        try:
            with room_on(needs):
                return work(devices), ""
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or all(map(memory.is_device_cpu, devices)):
                raise
            names = ", ".join(map(str, dict.fromkeys(devices)))
            log.warning("TPEC: out of memory on %s (%s), going on with the CPU.", names, error)
        memory.soft_empty_cache()
        return work((torch.device("cpu"),)), f"{names} had too little memory even so: this was computed on the CPU."
