"""What ComfyUI's text encoder loaders do: the tensors of every file, and where its quantization metadata is
honoured."""

import json
from typing import Any

import comfy.sd
import comfy.supported_models
import inventory
import torch
from encoder_variants import ENCODERS, TOGETHER, Encoder
from meta_models import META, Noting, fake, tensors_of
from variants import VARIANTS

BY_NAME = {encoder.name: encoder for encoder in ENCODERS}
TYPES = [kind.name for kind in comfy.sd.CLIPType]
LTX2_PROJECTION = inventory.Model("ltx-2-text-projection", {"te": "none"}, {
    "text_embedding_projection.aggregate_embed.weight": ((3840, 188160), "linear")})
State = dict[str, torch.Tensor]
_PRUNED = {"model.embed_tokens_prefill.weight", "model.lm_head_pruned.weight"}


class Caught:
    """Stands where ComfyUI would make a CLIP object, and keeps what it would have made it from."""

    last: "Caught"

    def __init__(self, target: Any, state_dict: list[State], model_options: dict, **_: Any) -> None:
        self.target, self.states, self.options = target, state_dict, model_options
        Caught.last = self

    @property
    def factory(self) -> str:
        clip = self.target.clip
        return f"{clip.__module__}.{clip.__qualname__}{sorted(self.options)}"

    def build(self, **options: Any) -> torch.nn.Module:
        """The encoder on the meta device."""
        root = self.target.clip(**self.target.params, dtype=torch.bfloat16, device=META,
                                model_options=self.options | options)
        if hasattr(root, "model"):      # MiniMax Music 3: decides at load which of its embeddings it has
            state = self.states[-1] if self.states else {}
            root.load_state_dict({name: state[name] for name in _PRUNED & set(state)}, strict=False)
        return root


def caught(states: list[State], clip_type: str) -> Caught:
    """What the loader node of this type would build from files that hold these tensors."""
    real = comfy.sd.CLIP
    comfy.sd.CLIP = Caught
    try:
        comfy.sd.load_text_encoder_state_dicts([dict(state) for state in states],
                                               clip_type=comfy.sd.CLIPType[clip_type])
    finally:
        comfy.sd.CLIP = real
    return Caught.last


def quantized(state: State) -> State:
    """The same file with the mark of a quantized layer."""
    mark = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    layer = next(name for name in state if name.endswith(".weight"))
    return state | {layer.removesuffix("weight") + "comfy_quant": mark}


def parts(root: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules that single files are loaded into, by their path."""
    if hasattr(root, "model"):      # MiniMax Music 3
        return {"": root}
    return {path: module.transformer for path, module in root.named_modules() if hasattr(module, "transformer")}


def part_of(root: torch.nn.Module, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The path of the part that holds exactly such tensors; None when the model has none like it."""
    for path, part in parts(root).items():
        if {name: shape for name, (shape, _) in tensors_of(part).items()} == shapes:
            return path
    return None


def seeded(root: torch.nn.Module, state: State) -> torch.nn.Module:
    """The part that has tensors of these names, and of the sizes of those that are vectors (of one element: of any
    size)."""
    for part in parts(root).values():
        held = tensors_of(part)
        if all(name in held and (tensor.dim() > 1 or tensor.numel() == 1 or held[name][0] == tensor.shape)
               for name, tensor in state.items()):
            return part
    raise AssertionError(f"{type(root).__qualname__} has no part for {list(state)[:3]}")


def mixed(part: torch.nn.Module) -> int:
    """How many Linears of a part ComfyUI built for quantized weights."""
    return sum("MixedPrecisionOps.Linear" in type(module).__qualname__ for module in part.modules())


def linears(tensors: inventory.Tensors) -> int:
    return sum(kind == "linear" for _, kind in tensors.values())


def file_name(name: str, prefixes: dict[str, str]) -> str:
    for own, its in sorted(prefixes.items(), key=lambda pair: -len(pair[0])):
        if name.startswith(own):
            return its + name.removeprefix(own)
    return name


def encoder(given: Encoder) -> inventory.Model:
    """The tensors of one file, proved by loading it; and for which loader types its quantization would be honoured."""
    seeds = [fake(BY_NAME[given.beside].seed)] if given.beside else []
    first = caught([*seeds, fake(given.seed)], given.clip_type)
    tensors = tensors_of(seeded(first.build(custom_operations=Noting), first.states[-1]))
    file = {file_name(name, given.prefixes): value for name, value in tensors.items()}
    state = fake({name: shape for name, (shape, _) in file.items()})
    kind = comfy.sd.detect_te_model(state).name
    assert kind == given.kind, f"{given.name}: recognised as {kind}, not {given.kind}"
    _assert_loads(given, seeds, state, tensors)
    total, linear = (sum(torch.Size(s).numel() for s, k in file.values() if k in kinds or not kinds) for kinds in ((),
                                                                                                                   ("linear",)))
    facts = {"te": kind, "parameters": str(total), "linear": f"{100 * linear / total:.2f} %"}
    return inventory.Model(given.name, facts | _honoured(given, state, tensors), file)


def _assert_loads(given: Encoder, seeds: list[State], state: State, tensors: inventory.Tensors) -> None:
    full = caught([*seeds, state], given.clip_type)
    missing, unexpected = full.build(custom_operations=Noting).load_sd(full.states[-1])
    assert not missing and not unexpected, f"{given.name}: missing {missing[:5]}, unexpected {unexpected[:5]}"
    assert set(full.states[-1]) == set(tensors), f"{given.name}: {set(full.states[-1]) ^ set(tensors)}"


def _honoured(given: Encoder, state: State, tensors: inventory.Tensors) -> dict[str, str]:
    """Loader types by what they do with this file alone: all Linears for quantized weights, none, or not this file."""
    counts: dict[str, str] = {}
    answers: dict[str, list[str]] = {}
    for kind in [] if given.beside else TYPES:
        found = caught([quantized(state)], kind)
        if found.factory not in counts:
            counts[found.factory] = _count(found, tensors)
        answers.setdefault(counts[found.factory], []).append(kind)
    return {answer: _said(kinds) for answer, kinds in answers.items()}


def _said(kinds: list[str]) -> str:
    """A set of loader types, by what is not in it where that is shorter."""
    if 2 * len(kinds) < len(TYPES):
        return " ".join(kinds)
    return " ".join(["every type", *(["but",
                                      *(kind for kind in TYPES if kind not in kinds)] if kinds != TYPES else [])])


def _count(found: Caught, tensors: inventory.Tensors) -> str:
    """honoured, not honoured, or the file does not fit what this type builds."""
    path = part_of(found.build(custom_operations=Noting), {name: shape for name, (shape, _) in tensors.items()})
    if path is None:
        return "does not fit"
    count, all_of_them = mixed(parts(found.build())[path]), linears(tensors)
    if count in (0, all_of_them):
        return "honoured" if count else "not honoured"
    return f"honoured in {count} of {all_of_them}"


def together(models: dict[str, inventory.Model]) -> list[inventory.Model]:
    """For loaders of several files: in which of them quantization is honoured when all are quantized."""
    out = []
    for clip_type, names in TOGETHER:
        states = [fake({name: shape for name, (shape, _) in models[file].tensors.items()}) for file in names]
        found = caught([quantized(state) for state in states], clip_type)
        facts = {file: f"{_mixed_of(found, models[file])} of {linears(models[file].tensors)}" for file in names}
        out.append(inventory.Model(f"{clip_type} {' + '.join(names)}", facts, {}))
    return out


def _mixed_of(found: Caught, model: inventory.Model) -> int:
    """How many Linears of this file are built for quantized weights."""
    if model is LTX2_PROJECTION:
        return mixed(found.build().text_embedding_projection)
    path = part_of(found.build(custom_operations=Noting), {name: shape for name, (shape, _) in model.tensors.items()})
    assert path is not None, f"{model.name} does not fit {found.factory}"
    return mixed(parts(found.build())[path])


def encoders() -> list[inventory.Model]:
    return [*(encoder(given) for given in ENCODERS), LTX2_PROJECTION]


# Where the class of a checkpoint's text encoder depends on what the checkpoint holds.
HELD = {"SD3": [{"clip_l": "clip-l", "clip_g": "clip-g", "t5xxl": "t5-xxl"}],
        "Flux2": [{"qwen3_4b": "qwen3-4b"}, {"qwen3_8b": "qwen3-8b"}, {"mistral3_24b": "mistral-3-24b"},
                  {"mistral3_24b": "mistral-3-24b-pruned"}],
        "ACEStep15": [{"qwen3_06b": "ace-1.5-qwen3-0.6b", "qwen3_2b": "ace-1.5-lm-qwen3-2b"},
                  {"qwen3_06b": "ace-1.5-qwen3-0.6b", "qwen3_4b": "ace-1.5-lm-qwen3-4b"}]}


def checkpoints(models: dict[str, inventory.Model]) -> list[inventory.Model]:
    """For full checkpoints of every class: their text encoders, and in which of them quantization is honoured."""
    first = {variant.model_class: variant for variant in reversed(VARIANTS)}
    names = dict.fromkeys(variant.model_class for variant in VARIANTS)
    return [checkpoint(name, first[name].config, held, models) for name in names for held in HELD.get(name, [{}])]


def checkpoint(name: str, unet: dict, held: dict[str, str], models: dict[str, inventory.Model]) -> inventory.Model:
    """One class with the encoders that a checkpoint of it holds."""
    config = getattr(comfy.supported_models, name)(unet)
    prefix = config.text_encoder_key_prefix[0]
    target = config.clip_target(state_dict=_state(prefix, {part: models[file].tensors for part, file in held.items()}))
    if target is None:
        return inventory.Model(name, {"prefix": "-"})
    root = Caught(target, [], {}).build(custom_operations=Noting)
    whole = {path: tensors_of(part) for path, part in parts(root).items()}
    again = config.clip_target(state_dict=_state(prefix, whole))
    counts = {path: mixed(part) for path, part in parts(Caught(again, [], {}).build()).items()}
    facts = {path or "-": f"{_like(tensors, models)} {counts[path]} of {linears(tensors)}"
             for path, tensors in whole.items()}
    title = name + "".join(f" {file}" for file in held.values())
    return inventory.Model(title, {"class": name, "prefix": prefix} | facts)


def _like(tensors: inventory.Tensors, models: dict[str, inventory.Model]) -> str:
    """The encoder file with these tensors, whose published names may have other prefixes."""
    for file, model in models.items():
        prefixes = BY_NAME[file].prefixes if file in BY_NAME else {}
        if model.tensors == {file_name(name, prefixes): value for name, value in tensors.items()}:
            return file
    return "own"


def _state(prefix: str, whole: dict[str, inventory.Tensors]) -> State:
    """A checkpoint with these encoders, every one with a quantized layer."""
    state: State = {}
    for part, tensors in whole.items():
        dot = f"{prefix}{part}.transformer." if part else prefix
        state |= quantized(fake({dot + name: shape for name, (shape, _) in tensors.items()}))
    return state
