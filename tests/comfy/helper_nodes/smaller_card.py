"""Tells ComfyUI that its GPU is a smaller one, for programs that hold the rest of the memory themselves.

What is free is then right by itself; what the card has in all is what this changes, where the variable
TPEC_TEST_CARD_BYTES says how much: in ComfyUI's own figures, and in those of its library for weights on demand.
"""

import ctypes
import logging
import os

import comfy.model_management as management
import comfy_aimdo.control
import torch

_BYTES = int(os.environ.get("TPEC_TEST_CARD_BYTES") or 0)
_get_total_memory = management.get_total_memory
#: Behind the device's number in comfy-aimdo's record of a device.
_CAPACITY_AT = 8


def get_total_memory(device: torch.device | None = None, torch_total_too: bool = False) -> int | tuple[int, int]:
    total = _get_total_memory(device, torch_total_too)
    if (device or management.get_torch_device()).type != "cuda":
        return total
    return (_BYTES, total[1]) if torch_total_too else _BYTES


def tell_aimdo() -> int:
    """The number of devices whose capacity was found where it is in the version that this was written for, and set."""
    told, totals = 0, (torch.cuda.get_device_properties(0).total_memory, torch.cuda.mem_get_info()[1])
    for device in getattr(comfy_aimdo.control, "devctxs", []):
        capacity = ctypes.c_uint64.from_address(device + _CAPACITY_AT)
        if capacity.value in totals:
            capacity.value, told = _BYTES, told + 1
    return told


if _BYTES and torch.cuda.is_available():
    management.get_total_memory = get_total_memory
    management.total_vram = _BYTES / 2**20
    logging.info("TEST a card of %.2f GB; comfy-aimdo was told for %d device(s)", _BYTES / 1e9, tell_aimdo())
