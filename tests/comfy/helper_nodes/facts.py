"""What lives in ComfyUI's process: to see what jobs leave behind."""

import ctypes
import gc
import json
import sys
import threading
from collections import Counter
from contextlib import suppress

import comfy.model_management as management
import comfy.ops
import torch
from comfy_api.latest import io, ui

#: Part of the names that ComfyUI gives the modules of this pack.
_PACK = "tpec"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_cast = comfy.ops.cast_bias_weight


class _Malloc(ctypes.Structure):
    """glibc's `struct mallinfo2`: bytes and counts over all of its arenas."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                     "fsmblks", "uordblks", "fordblks", "keepcost")]


def given_out() -> int:
    """Bytes that malloc has given out and not got back, 0 where it does not say; what lies idle between them is left
    out, so that this grows with leaks alone."""
    with suppress(OSError, AttributeError):
        mallinfo2 = ctypes.CDLL(None).mallinfo2
        mallinfo2.restype = _Malloc
        found = mallinfo2()
        return found.uordblks + found.hblkhd
    return 0


def facts() -> dict[str, object]:
    """Counts and bytes, once everything that nobody holds is gone, freed memory given back to the system included.

    `hooks` and `patched` (modules with a `forward` of their own) are of all modules that there are, in whatever model;
    `borrowed` names what of ComfyUI's own is not what it was when ComfyUI started.
    """
    gc.collect()
    management.soft_empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    held, blocks = given_out(), sys.getallocatedblocks()
    # One after another: a list of them with their kinds would leave the memory that is looked at in pieces.
    modules, tensors, objects = [], [], Counter[str]()
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, torch.nn.Module):
            modules.append(thing)
        elif issubclass(kind, torch.Tensor):
            tensors.append(thing)
        if _PACK in str(kind.__module__):
            objects[kind.__qualname__] += 1
    cuda = torch.cuda.is_initialized()
    return {
        "hooks": sum(len(getattr(module, name)) for module in modules for name in _HOOKS),
        "patched": sum("forward" in vars(module) for module in modules),
        "borrowed": [*(["cast_bias_weight"] if comfy.ops.cast_bias_weight is not _cast else []),
                     *(["in_training"] if getattr(management, "in_training", False) else []),
                     *(["grad"] if any(tensor.requires_grad and not tensor.is_inference() and tensor.grad_fn is not None
                                       for tensor in tensors) else [])],
        "modules": len(modules), "tensors": len(tensors), "objects": dict(objects.most_common()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "models": len(management.current_loaded_models),
        "given_out": held,
        "blocks": blocks,
        "allocated": torch.cuda.memory_allocated() if cuda else 0,
        "vram": (lambda free, total: total - free)(*torch.cuda.mem_get_info()) if cuda else 0,
    }


class TestServerFacts(io.ComfyNode):
    """JSON of `facts()`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestServerFacts", category="tests", inputs=[], outputs=[io.String.Output()],
                         is_output_node=True, not_idempotent=True)

    @classmethod
    def fingerprint_inputs(cls) -> float:
        return float("nan")

    @classmethod
    def execute(cls) -> io.NodeOutput:
        text = json.dumps(facts())
        return io.NodeOutput(text, ui=ui.PreviewText(text))
