"""Between the engine's callbacks and ComfyUI: progress bar, text, interrupt, device and memory."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import comfy.model_management as memory
import comfy.utils
import torch
from server import PromptServer

from ..tpec.progress import Progress

log = logging.getLogger(__name__)

_TEXT_SECONDS = 0.25
_STEPS = 1000
Result = TypeVar("Result")


class NodeProgress:
    """The engine's progress callback: moves the node's bar, writes below it, stops when the user asks."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._bar = comfy.utils.ProgressBar(_STEPS, node_id=node_id)
        self._written = 0.0

    def __call__(self, event: Progress) -> None:
        """Raises ComfyUI's interrupt exception when the user cancelled."""
        memory.throw_exception_if_processing_interrupted()
        part = event.done / event.total if event.total else 1.0
        self._bar.update_absolute(round(_STEPS * part), _STEPS)
        left = "" if event.eta is None else f", about {_duration(event.eta)} left"
        self.text(f"{event.index} of {event.count} layers{left}\n{event.layer}")

    def part(self, done: int, total: int, message: str) -> None:
        """For work that is counted in whole pieces."""
        self._bar.update_absolute(round(_STEPS * done / total), _STEPS)
        self.text(message)

    def text(self, message: str, always: bool = False) -> None:
        """Show a line below the node, at most four times a second."""
        now = time.monotonic()
        if always or now - self._written >= _TEXT_SECONDS:
            self._written = now
            PromptServer.instance.send_progress_text(message, self._node_id)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def device_choices() -> list[str]:
    """The device combo: ComfyUI's own choice, the CPU, and each GPU where there are several."""
    every = getattr(memory, "get_all_torch_devices", list)()  # ComfyUI 0.23 and later
    several = [str(device) for device in every] if len(every) > 1 else []
    return ["auto", "cpu", *several]


def torch_device(choice: str) -> torch.device:
    """The device to compute on; the CPU where PyTorch cannot hold float8 tensors on ComfyUI's own (Apple, DirectML)."""
    device = memory.get_torch_device() if choice == "auto" else torch.device(choice)
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


@contextmanager
def room_on(device: torch.device, nbytes: int) -> Iterator[None]:
    """Have ComfyUI unload models until `nbytes` are free on `device`; give back what was cached afterwards."""
    if memory.is_device_cpu(device):
        yield
        return
    memory.free_memory(nbytes, device)
    try:
        yield
    finally:
        memory.soft_empty_cache()


def with_cpu_fallback(device: torch.device, nbytes: int, work: Callable[[torch.device], Result]) -> tuple[Result, str]:
    """Run `work(device)`; when that device's memory is not enough even so, once more on the CPU.

    Returns the result and a sentence about the fallback, '' when there was none.
    """
    # ComfyUI runs nodes in inference mode, which is per thread: tensors of the engine's own threads would not mix.
    with torch.inference_mode(False), torch.no_grad():
        try:
            with room_on(device, nbytes):
                return work(device), ""
        except memory.OOM_EXCEPTION as error:
            if memory.is_device_cpu(device):
                raise
            log.warning("TPEC: out of memory on %s (%s), going on with the CPU.", device, error)
        memory.soft_empty_cache()
        return work(torch.device("cpu")), f"{device} had too little memory even so: this was computed on the CPU."
