"""Text encoder files, asked of ComfyUI's own loader: which Linears it would build for quantized weights."""

import comfy.sd
import torch

from ...tpec.model.structure import Structure
from .modules import Found, Tensors, file_names, in_file, scaled_modules


class _Target:
    """Stands in ComfyUI's loader where a CLIP object is made: keeps what it would be made from."""

    def __init__(self, target: object, state_dict: list[Tensors], model_options: dict, **_: object) -> None:
        self.clip, self.params, self.options, self.states = target.clip, target.params, model_options, state_dict

    @property
    def maker(self) -> tuple[str, ...]:
        """Equal for equal classes, which a factory makes anew each time."""
        return (self.clip.__module__, self.clip.__qualname__, *sorted(self.options), *map(str, self.params.items()))

    def build(self) -> torch.nn.Module:
        return self.clip(**self.params, dtype=torch.bfloat16, device=torch.device("meta"), model_options=self.options)


def encoder_structure(state: Tensors) -> Structure | None:
    """The modules of a text encoder file whose scales at least one type of ComfyUI's loader honours.

    Its name is ComfyUI's `TEModel`; without a Linear ComfyUI knows the file but ignores its scales. None when ComfyUI
    does not know the file.
    """
    kind = comfy.sd.detect_te_model(state)
    load = comfy.sd.load_text_encoder_state_dicts
    if kind is None or getattr(load, "__globals__", None) is not vars(comfy.sd):  # replaced by somebody
        return None
    marked = state | {f"{next(iter(state))}.comfy_quant": torch.zeros(1)}
    targets: dict[tuple[str, ...], _Target] = {}
    for clip_type in comfy.sd.CLIPType:
        target = _target(marked, clip_type)
        targets.setdefault(target.maker, target)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    names = file_names(shapes, lambda given: _target(given, comfy.sd.CLIPType.STABLE_DIFFUSION).states[0])
    built = [target.build() for target in targets.values()]
    parts = [in_file(kind.name, found, names, shapes) for model in built for found in _parts(model)]
    empty: frozenset[str] = frozenset()
    return Structure(kind.name, empty.union(*(part.linears for part in parts)),
                     empty.union(*(part.embeddings for part in parts)), empty.union(*(part.experts for part in parts)))


def _target(state: Tensors, clip_type: "comfy.sd.CLIPType") -> _Target:
    """ComfyUI's loader up to the point where it would make the encoder: a copy of the function, so that nothing of
    ComfyUI's is changed."""
    load = comfy.sd.load_text_encoder_state_dicts
    copied = type(load)(load.__code__, {**load.__globals__, "CLIP": _Target}, load.__name__, load.__defaults__)
    return copied([dict(state)], clip_type=clip_type)


def _parts(model: torch.nn.Module) -> list[Found]:
    """The scaled modules of every part that one file can be loaded into."""
    inner = [module.transformer for module in model.modules() if "transformer" in module._modules]
    return [scaled_modules(part) for part in inner or [model]]
