"""Which family a file is of, and where in the file the model lies: from the header alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import TpecError
from ...files.header import TensorInfo
from ..order import family_names
from ..structure import Structure
from .completeness import missing, readable
from .family import Encoder, Family, Key, find
from .refusals import adapters, controlnet, refusal
from .table import (
    CUSTOM,
    DIFFUSION,
    FAMILIES,
    FOREIGN_PREFIXES,
    GENERIC,
    PREFIXES,
    TEXT,
    encoder_prefixes,
)

Tensors = Mapping[str, TensorInfo]

_SPLIT = "If the model was split into several files, name its index (*.index.json) or the folder with all of them."


@dataclass(frozen=True)
class Detection:
    """The recognised family, the prefix its tensors carry in this file, and why."""

    family: Family
    prefix: str
    why: str


def detect(name: str, tensors: Tensors, wanted: str, include: str, structure: Structure | None = None) -> Detection:
    """Recognise the layout from names and shapes alone; `name` is the file's, for messages.

    `wanted` is a family's name or "auto"; the same checks hold for both. Raises TpecError for layouts that are refused
    or unknown; an unknown one passes as "generic" if `structure` says that ComfyUI knows it, and with
    `include` as "custom".
    """
    if wanted != "auto" and wanted not in FAMILIES:
        raise TpecError(f"There is no family '{wanted}': it must be one of {', '.join(family_names())}.")
    found = _search(tensors, wanted)
    names = tensors if found is None else [n for n in tensors if n.startswith(found.prefix)]
    sentence = adapters(names) or controlnet(names)
    if sentence:
        raise TpecError(f"{name} cannot be quantized: {sentence}.")
    if found is not None:
        return found
    return _unrecognised(name, tensors, wanted, include, structure)


def refuse_incomplete(name: str, found: Detection, tensors: Tensors) -> None:
    """Raises TpecError, by the name of what is missing, for a part of a model; `name` is the file's."""
    lack = missing(found.family, part_of(tensors, found.prefix))
    if lack:
        raise TpecError(f"{name} is only a part of a {found.family.title}: {found.prefix}{lack} is missing. {_SPLIT}")


def choose_parts(name: str, tensors: Tensors, found: Detection,
                 wanted: Sequence[str]) -> tuple[tuple[Detection, ...], tuple[str, ...]]:
    """The parts named by `wanted` besides `found`, and sentences about those that stay as they are.

    `name` is the file's, for messages. Raises TpecError for a part that the file does not hold.
    """
    there = {encoder.name: encoder for encoder in found.family.encoders
             if any(tensor.startswith(encoder.prefix) for tensor in tensors)}
    parts, notes = [], []
    for part in dict.fromkeys(wanted):
        encoder = there.get(part)
        if encoder is None:
            choices = f"it can be one of {', '.join(there)}" if there else "it holds no text encoder of its model"
            raise TpecError(f"{name} has no part '{part}': {choices}.")
        if encoder.ignored:
            notes.append(f"{part} stays as it is: {encoder.ignored}")
        else:
            parts.append(_detected(name, tensors, encoder))
    return tuple(parts), tuple(notes)


def _detected(name: str, tensors: Tensors, encoder: Encoder) -> Detection:
    family = FAMILIES[encoder.family]
    part = part_of(tensors, encoder.prefix)
    if recognise(part, [family]) is None:
        raise TpecError(f"The part '{encoder.name}' of {name} is not the {family.title} that belongs to this model: "
                        "leave it as it is.")
    return Detection(family, encoder.prefix, f"{family.title} under '{encoder.prefix}'")


def part_of(tensors: Tensors, prefix: str) -> dict[str, TensorInfo]:
    """The tensors under `prefix`, by their names without it."""
    return {name[len(prefix):]: info for name, info in tensors.items() if name.startswith(prefix)}


def never_read(tensors: Tensors, family: object) -> frozenset[str]:
    """The tensors that the drop rules of a family leave out; `family` is a name, None stands for any text encoder."""
    families = TEXT if family is None else [known for known in FAMILIES.values() if known.name == family]
    for prefix in ("", *encoder_prefixes()):
        part = part_of(tensors, prefix)
        found = recognise(part, families)
        if found is not None:
            return frozenset(f"{prefix}{name}" for name in part if found.dropped(name))
    return frozenset()


def recognise(tensors: Tensors, families: Iterable[Family]) -> Family | None:
    """The first of `families` that tensors (named without a prefix) fit."""
    return next((family for family in families if _fits(family, tensors)), None)


def _search(tensors: Tensors, wanted: str) -> Detection | None:
    """Diffusion models first; a text encoder counts where it is asked for or all that there is."""
    wishes = [FAMILIES[wanted]] if wanted != "auto" else [*DIFFUSION, *TEXT]
    models = [family for family in wishes if family in DIFFUSION]
    encoders = [family for family in wishes if family in TEXT]
    places = [(prefix, models) for prefix in PREFIXES]
    places += [(prefix, encoders) for prefix in ("", *encoder_prefixes())]
    for prefix, families in places:
        part = part_of(tensors, prefix) if families else {}
        family = recognise(part, families) if part else None
        if family is not None and (wanted != "auto" or family in DIFFUSION or not _holds_another_model(tensors)):
            return Detection(family, prefix, _why(family, prefix, part))
    return None


def _holds_another_model(tensors: Tensors) -> bool:
    """Whether the file holds a diffusion model, known or not, beside text encoders."""
    return any(name.startswith(PREFIXES[1:4]) for name in tensors)


def _fits(family: Family, tensors: Tensors) -> bool:
    return (all(_has(need, tensors) for need in family.needs)
            and not any(key.among(tensors) if isinstance(key, Key) else find(key, tensors) for key in family.forbids))


def _has(need: Key | tuple[Key, ...], tensors: Tensors) -> bool:
    return any(key.among(tensors) for key in (need if isinstance(need, tuple) else (need,)))


def _why(family: Family, prefix: str, part: Tensors) -> str:
    first = family.needs[0]
    proof = next(filter(None, (key.among(part) for key in (first if isinstance(first, tuple) else (first,)))))
    title = next((title for title, text in family.variants if find(text, part)), family.title)
    where = f" under '{prefix}'" if prefix else ""
    return f"{title}: recognised by {proof}{where}"


def _unrecognised(name: str, tensors: Tensors, wanted: str, include: str, structure: Structure | None) -> Detection:
    sentence = refusal(tensors)
    if wanted != "auto" and not (sentence and FAMILIES[wanted] in TEXT):
        raise TpecError(f"{name} does not have the layout of {FAMILIES[wanted].title} (its keys are "
                        f"{_sample(tensors)}): leave the family at auto.")
    if sentence:
        raise TpecError(f"{name} cannot be quantized: {sentence}.")
    if structure is not None:
        return _generic(name, tensors, structure)
    _refuse_foreign_prefix(name, tensors)
    if include:
        return Detection(CUSTOM, _common_prefix(tensors), "unknown layout, only the layers named by include")
    _refuse_fragment(name, tensors)
    raise TpecError(f"{name} has a layout that is not known here (its keys are {_sample(tensors)}; docs/families.md "
                    "lists the known ones): nothing was written. If you know which layers are safe, name them with "
                    "include.")


def _generic(name: str, tensors: Tensors, structure: Structure) -> Detection:
    """A model that only ComfyUI knows, under the prefix where most of its Linears are."""
    if not structure.linears:
        raise TpecError(f"{name} cannot be quantized: ComfyUI knows it ({structure.name}) but ignores FP8 scales "
                        "there; use it as it is.")
    counts = {prefix: sum(f"{prefix}{module}.weight" in tensors for module in structure.linears) for prefix in PREFIXES}
    family = replace(GENERIC, title=structure.name)
    return Detection(family, max(counts, key=lambda prefix: counts[prefix]),
                     f"{structure.name}: recognised by the installed ComfyUI")


def _refuse_foreign_prefix(name: str, tensors: Tensors) -> None:
    for prefix in FOREIGN_PREFIXES:
        family = recognise(part_of(tensors, prefix), DIFFUSION)
        if family is not None:
            raise TpecError(f"{name} is a {family.title} whose tensors are named '{prefix}*', and ComfyUI does not "
                            "take that prefix off: rename them, or use a file in ComfyUI's layout.")


def _refuse_fragment(name: str, tensors: Tensors) -> None:
    """Some blocks of a family without what tells it: a shard, or a model that lost its first tensors."""
    for prefix in PREFIXES:
        part = part_of(tensors, prefix)
        modules = [tensor.removesuffix(".weight") for tensor, info in part.items()
                   if tensor.endswith(".weight") and len(info.shape) == 2]
        families = _closest(modules, part)
        if families:
            held = next(module for module in modules if families[0].in_block(module))
            lost = [_example(next(need for need in family.needs if not _has(need, part))) for family in families]
            titles = " or ".join(family.title for family in families)
            raise TpecError(f"{name} looks like a part of a {titles} (it holds {prefix}{held}), but "
                            f"{prefix}{' or '.join(dict.fromkeys(lost))} is missing. {_SPLIT}")


def _closest(modules: list[str], part: Tensors) -> list[Family]:
    """The families that know most of the Linears and have most of what tells them; two if nothing sets them apart."""
    scores = {}
    for family in DIFFUSION:
        known = [module for module in modules if family.is_linear(module)]
        needs = [_has(need, part) for need in family.needs]
        if len(known) > len(modules) / 2 and any(map(family.in_block, known)) and not all(needs):
            scores[family] = (len(known), sum(needs))
    return [family for family, score in scores.items() if score == max(scores.values())][:2]


def _example(need: Key | tuple[Key, ...]) -> str:
    return readable(need[0].name if isinstance(need, tuple) else need.name)


def _sample(tensors: Tensors) -> str:
    names = sorted(tensors)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _common_prefix(tensors: Tensors) -> str:
    return next((p for p in PREFIXES[1:] if any(name.startswith(p) for name in tensors)), "")
