"""A MODEL of the graph as something to quantize: its weights with all patches, under the names that ComfyUI saves."""

import re
import uuid
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from ...tpec.errors import TpecError
from ...tpec.files.source import ComputedModel, describe_tensors
from ...tpec.model.origin import GraphOrigin
from ..handles import CheckpointHandle
from .baking import Computation, baked_shape, computation, original, refuse_quantized, room_for, saved_names
from .structure import structure_of

#: A name per loaded model of this process, which no later one gets.
_models: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()
_UNFIT = re.compile(r"[^\w.+-]+")


def graph_model(patcher) -> CheckpointHandle:
    """The handle of a MODEL; nothing is computed yet. Raises TpecError for what cannot be quantized.

    The handle holds the MODEL, so that it is there when it is quantized; ComfyUI frees both alike. What it describes
    refers to it weakly, so that results, which are kept longer, do not hold a model in memory.
    """
    refuse_quantized(patcher)
    names, added = saved_names(patcher)
    tensors = {name: (original(patcher, key).dtype, baked_shape(patcher, key)) for name, key in names.items()}
    tensors |= {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in added.items()}
    origin, name = _origin(patcher, set(names.values())), _name(patcher)
    if origin.changed:
        name += "_lora" if origin.loras and not origin.merges else "_merge" if origin.merges else "_patched"
    model = ComputedModel(
        name, describe_tensors(f"the {origin.model} in the graph", tensors), _key(patcher),
        partial(_opened, weakref.ref(patcher), name), origin.recipe(),
        (f"made from {origin.text()}", *unbaked(patcher)))
    return CheckpointHandle(model, "auto", structure_of(model.tensors, model.metadata), patcher)


def baking_room(handle: CheckpointHandle) -> dict[torch.device, int]:
    """Bytes that computing the weights takes beside the model, and where; nothing for a file."""
    return {} if handle.patcher is None else room_for(handle.patcher)


@contextmanager
def _opened(reference: weakref.ref, name: str) -> Iterator[Computation]:
    patcher = reference()
    if patcher is None:
        raise TpecError(f"The model {name} is no longer loaded, and its quantized file is gone: free ComfyUI's model "
                        "and node cache, and run again.")
    yield computation(patcher)


def _key(patcher) -> str:
    """Another one for every model that is loaded and for every change of its patches."""
    loaded = _models.setdefault(patcher.model, uuid.uuid4().hex)
    patches = sum(map(len, patcher.patches.values()))
    return f"{loaded} {patcher.patches_uuid} {patches} {patcher.load_device}"


def _name(patcher) -> str:
    """The file that ComfyUI loaded the model from, where it is known, without folders and suffix; else the class."""
    init = getattr(patcher, "cached_patcher_init", None)
    path = init[1][0] if init and init[1] else None
    stem = Path(path.replace("\\", "/")).stem if isinstance(path, str) else ""
    return _UNFIT.sub("_", stem or type(patcher.model).__name__)


def _origin(patcher, keys: set[str]) -> GraphOrigin:
    """What the patches are, as far as they show it: LoRAs of one file share the set of its names."""
    loras: dict[tuple[int, float], float] = {}
    merges: dict[float, None] = {}
    changed = {key: patches for key, patches in patcher.patches.items() if key in keys and patches}
    for patches in changed.values():
        for strength, value, *_ in patches:
            if isinstance(value, list):
                merges[float(strength)] = None
            elif hasattr(value, "loaded_keys"):
                loras[id(value.loaded_keys), float(strength)] = float(strength)
    return GraphOrigin(type(patcher.model).__name__, len(changed), tuple(loras.values()), tuple(merges))


def unbaked(patcher) -> tuple[str, ...]:
    """A sentence on what the graph changes about the model that is not in its weights, none if there is nothing."""
    options = patcher.model_options
    transformer = options.get("transformer_options", {})
    found = [*patcher.object_patches, *_counted("weight function", getattr(patcher, "weight_wrapper_patches", {})),
             *(f"injection {name}" for name in getattr(patcher, "injections", {})),
             *_counted("weight hook", getattr(patcher, "hook_patches", {})),
             *(f"patch {name}" for name in transformer.get("patches", {})),
             *(f"replaced {name}" for name in transformer.get("patches_replace", {})),
             *(name for name in transformer if name not in ("patches", "patches_replace")),
             *(name for name in options if name != "transformer_options")]
    if not found:
        return ()
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
    return (f"not in the weights and so not in the file, apply the same nodes to the quantized model: {shown}",)


def _counted(what: str, found: Sequence | dict) -> list[str]:
    return [f"{len(found)} {what}{'' if len(found) == 1 else 's'}"] if found else []
