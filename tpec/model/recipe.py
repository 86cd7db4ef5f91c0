"""A recipe: what becomes of every layer and why, as plain data that can be written, edited by hand and read again.

The file is JSON: {"tpec_recipe": 1, "model": ..., "family": ..., "layers": {name: {"format": "fp8" or "keep", "matmul":
"fp8" or "full_precision", "why": ...}}}. Names are the layers' without the prefix of the model's own file, so that a
recipe serves all files of a layout. Layers that it does not name are decided as without it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import TpecError
from ..files.replace import disk_fault, write_text
from ..patterns import matches
from ..settings import LAYER_MATMULS, Settings
from .families import KEEP, PREFIXES, QUANTIZE
from .plan import Plan, TensorPlan, make_plan
from .structure import Structure

VERSION = 1
FP8, HIGH = "fp8", "keep"
_MOST_BYTES = 64 << 20
_FIELDS = {"format": (FP8, HIGH), "matmul": LAYER_MATMULS}
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Choice:
    """What becomes of one layer: `format` is FP8 or HIGH, `matmul` one of LAYER_MATMULS or '' (the settings' own)."""

    format: str
    matmul: str = ""
    why: str = ""


@dataclass(frozen=True)
class Recipe:
    """Choices by layer name; `source` names where they come from, for messages, `family` the layout they are for.

    With `lenient` a layer that cannot be FP8 here, or is not there, is passed over; else that is an error.
    """

    layers: Mapping[str, Choice]
    source: str = "the recipe"
    family: str = ""
    lenient: bool = field(default=False, kw_only=True)


def recipe_of(plan: Plan, structure: Structure | None = None) -> Recipe:
    """What `plan` decides for every layer that ComfyUI could scale, and why; `structure` is as for make_plan."""
    layers, possible = {}, _possible(plan, structure)
    for layer in plan.tensors:
        if layer.action == QUANTIZE:
            own = "fp8" if plan.settings.matmul == "fp8" else "full_precision"
            layers[bare(layer, plan)] = Choice(FP8, layer.matmul or own, layer.reason)
        elif layer.name in possible:
            layers[bare(layer, plan)] = Choice(HIGH, "", layer.reason)
    return Recipe(layers, plan.checkpoint.name, plan.family.name)


def follow(plan: Plan, recipe: Recipe, structure: Structure | None = None) -> Plan:
    """`plan` with the layers as `recipe` wants them; what the user includes or excludes by name stays so.

    `structure` is as for make_plan. Raises TpecError for layers that the model does not have or that must not be FP8.
    """
    known = {bare(layer, plan): layer for layer in plan.tensors if layer.name.endswith(".weight")}
    lost = [name for name in recipe.layers if name not in known]
    if lost and (not recipe.lenient or len(lost) == len(recipe.layers)):
        raise TpecError(f"{recipe.source} is for another model: {plan.checkpoint.name} has no layer '{lost[0]}'; "
                        "take one of this model.")
    possible = _possible(plan, structure)
    wanted = {known[name].name: choice for name, choice in recipe.layers.items() if name in known}
    refused = [name for name, choice in wanted.items() if choice.format == FP8 and name not in possible]
    if refused and not recipe.lenient:
        why = next(layer.reason for layer in plan.tensors if layer.name == refused[0])
        raise TpecError(f"{recipe.source} wants '{refused[0].removesuffix('.weight')}' in FP8, which cannot be "
                        f"({why}): write \"{HIGH}\" there.")
    layers = tuple(_followed(layer, wanted.get(layer.name), layer.name in possible, plan.settings)
                   for layer in plan.tensors)
    if not any(layer.action == QUANTIZE for layer in layers):
        raise TpecError(f"{recipe.source} leaves no layer of {plan.checkpoint.name} to quantize: take one that has "
                        "layers in FP8.")
    count = sum(one.action != other.action for one, other in zip(plan.tensors, layers, strict=True))
    notes = [f"layers as {recipe.source} has them ({count} differ from the defaults)"]
    if refused:
        notes.append(f"{len(refused)} layers that are FP8 there stay in high precision, as ComfyUI would ignore their "
                     f"scales (the first is {refused[0].removesuffix('.weight')})")
    return replace(plan, tensors=layers, notes=(*plan.notes, *notes))


def bare(layer: TensorPlan, plan: Plan) -> str:
    """The name that a recipe has for a layer: with its prefix only where it is not of the file's main model."""
    part = plan.part(layer.name)
    return layer.linear_in_model if part is plan.parts[0] else layer.linear


def without_prefix(name: str) -> str:
    """`name` without the prefix under which a diffusion model's file may have it."""
    prefix = max((prefix for prefix in PREFIXES if name.startswith(prefix)), key=len)
    return name[len(prefix):]


def _possible(plan: Plan, structure: Structure | None) -> frozenset[str]:
    """The tensors that could be FP8 if the user asked for it."""
    known = bool(plan.family.linears) or structure is not None
    every = replace(plan.settings, include="." if known else plan.settings.include, exclude="")
    return frozenset(layer.name for layer in make_plan(plan.checkpoint, every, structure).of(QUANTIZE))


def _followed(layer: TensorPlan, choice: Choice | None, possible: bool, settings: Settings) -> TensorPlan:
    if choice is None or any(text and matches(text, layer.name) for text in (settings.include, settings.exclude)):
        return layer
    if choice.format == FP8 and possible:
        return replace(layer, action=QUANTIZE, reason=choice.why or layer.reason, matmul=choice.matmul)
    if choice.format == HIGH and layer.action == QUANTIZE:
        return replace(layer, action=KEEP, reason=choice.why or "kept by the recipe")
    return layer


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write `recipe` as JSON, one layer a line. Raises TpecError when the file cannot be written."""
    lines = [f"  {json.dumps(name)}: {json.dumps(_fields(choice))}" for name, choice in recipe.layers.items()]
    head = f'{{"tpec_recipe": {VERSION}, "model": {json.dumps(recipe.source)}, "family": {json.dumps(recipe.family)},'
    write_text(path, "\n".join([head, ' "layers": {', ",\n".join(lines), "}}\n"]))


def _fields(choice: Choice) -> dict[str, str]:
    return {name: text for name in ("format", "matmul", "why") if (text := getattr(choice, name))}


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from wherever it comes. Raises TpecError, by the place, for anything that is not one."""
    try:
        if os.path.getsize(path) > _MOST_BYTES:
            raise TpecError(f"{path.name} is too large for a recipe: choose one written by --write-recipe.")
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise TpecError(f"The recipe {disk_fault(error, path, 'read')}") from None
    except (ValueError, RecursionError) as error:
        raise TpecError(f"{path.name} is not a recipe: it is no JSON ({_where(error)}); correct it, or write a new "
                        "one with --write-recipe.") from None
    if not isinstance(data, dict) or "tpec_recipe" not in data:
        raise TpecError(f"{path.name} is not a recipe: write one with --write-recipe and edit that.")
    if data["tpec_recipe"] != VERSION:
        raise TpecError(f"{path.name} is a recipe of version {str(data['tpec_recipe'])[:20]}, this program reads "
                        f"version {VERSION}: update it.")
    layers = data.get("layers")
    if not isinstance(layers, dict) or not layers:
        raise TpecError(f"The recipe {path.name} names no layers: write one with --write-recipe and edit that.")
    family = data.get("family", "")
    choices = {name: _choice(path.name, name, fields) for name, fields in layers.items()}
    return Recipe(choices, f"The recipe {path.name}", family if isinstance(family, str) else "")


def _choice(file: str, name: str, fields: object) -> Choice:
    """One layer's line, checked."""
    if not isinstance(fields, dict) or "format" not in fields:
        raise TpecError(f"The recipe {file} says nothing useful of '{name}': write "
                        f'{{"format": "{FP8}"}} or {{"format": "{HIGH}"}} there.')
    for key, value in fields.items():
        allowed = _FIELDS.get(key)
        if allowed is None and key != "why":
            raise TpecError(f"The recipe {file} has '{key}' at '{name}': leave it out, it may say format, matmul and "
                            "why.")
        if not isinstance(value, str) or allowed and value not in allowed:
            raise TpecError(f"The recipe {file} has {json.dumps(value)[:40]} as {key} of '{name}': it must be "
                            f"{' or '.join(allowed) if allowed else 'text'}.")
    return Choice(fields["format"], fields.get("matmul", ""), fields.get("why", "")[:_LONGEST_REASON])


def _where(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    return "too deeply nested" if isinstance(error, RecursionError) else "not UTF-8 text"
