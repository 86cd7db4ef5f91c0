"""ComfyUI's modules against a file's tensors: which weights get a scale, and what they are called in the file."""

from collections.abc import Callable, Mapping

import torch

from ...tpec.files.header import TensorInfo
from ...tpec.model.structure import Structure

Tensors = dict[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]
#: Per module: "linears", "embeddings" or "experts".
Found = dict[str, str]

_KINDS = {"Linear": "linears", "Embedding": "embeddings", "MoEExperts": "experts"}
_RANKS = {"linears": 2, "embeddings": 2, "experts": 3}


def hollow(tensors: Mapping[str, TensorInfo]) -> Tensors:
    """Tensors of the header's shapes that take no memory: a single zero each, repeated without a copy."""
    return {name: torch.zeros(()).expand(info.shape) for name, info in tensors.items()}


def scaled_modules(model: torch.nn.Module) -> Found:
    """The modules that were made by ComfyUI's operations for quantized files (`comfy.ops.mixed_precision_ops`)."""
    kinds = {name: _kind(type(module)) for name, module in model.named_modules()}
    return {name: kind for name, kind in kinds.items() if kind}


def _kind(made: type) -> str:
    """What of the operations a module's class is, or derives from; '' for any other."""
    for base in made.__mro__:
        if base.__qualname__.startswith("mixed_precision_ops.") and base.__name__ in _KINDS:
            return _KINDS[base.__name__]
    return ""


def file_names(shapes: Shapes, load: Callable[[Tensors], Tensors]) -> dict[str, str]:
    """{module as loaded: module in the file} for weights that `load` hands on untouched, their scales with them.

    `shapes` is the file's, `load` what ComfyUI does to names and tensors before modules get them.
    """
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    origin = {id(tensor): name for name, tensor in weights.items()}
    loaded = {name: origin.get(id(tensor)) for name, tensor in load(dict(weights)).items()}
    names = {name.removesuffix(".weight"): given.removesuffix(".weight") for name, given in loaded.items()
             if given is not None and name.endswith(".weight") and given.endswith(".weight")}
    scales = {f"{given}.weight_scale": torch.empty((), device="meta") for given in names.values()}
    arrived = load(weights | scales)
    return {name: given for name, given in names.items()
            if arrived.get(f"{name}.weight_scale") is scales[f"{given}.weight_scale"]}


def in_file(title: str, found: Found, names: Mapping[str, str], shapes: Shapes) -> Structure:
    """The modules that the file holds a weight for, under the file's names. Sizes are not compared: ComfyUI takes
    quantized weights as they come."""
    sets: dict[str, set[str]] = {kind: set() for kind in _RANKS}
    for module, kind in found.items():
        given = names.get(module)
        if given is not None and len(shapes[f"{given}.weight"]) == _RANKS[kind]:
            sets[kind].add(given)
    return Structure(title, **{kind: frozenset(modules) for kind, modules in sets.items()})
