"""Facts about ComfyUI's models: names, shapes and kinds of all tensors, collapsed over numbered blocks in tests/data.

A data file is lines of text. `[name]` starts a model, `key = value` lines say what is known about it, all others are
`name shape kind`: the name with `{0-18}` where blocks are numbered, the shape as `9216x3072` (`-` for a scalar), the
kind
of module that owns the tensor:
    linear      ComfyUI's Linear: the only weights (with the next two) whose scales ComfyUI honours
    embedding   ComfyUI's Embedding
    experts     ComfyUI's stack of experts [experts, out, in]
    conv, norm, parameter, buffer, torch_linear, torch_embedding, other: everything that must stay as it is
    changed     split or rearranged by ComfyUI when it loads the file
`+bias` behind a weight's name stands for a second tensor `.bias` with the weight's first size. `like = other` takes
over
the lines of an earlier model; `- line` then takes one of them away.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

DATA = Path(__file__).parent / "data"
BIAS = "bias"

Tensors = dict[str, tuple[tuple[int, ...], str]]
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])|(?<=\.block)\d+(?![^.])")


@dataclass
class Model:
    """One layout: what is known about it, and {name: (shape, kind)} of its tensors."""

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)

    def modules(self, kind: str) -> frozenset[str]:
        """Names of the modules of one kind, without `.weight`."""
        return frozenset(name.removesuffix(".weight") for name, (_, its) in self.tensors.items() if its == kind)


def read(path: Path) -> dict[str, Model]:
    """The models of a data file by name."""
    models: dict[str, Model] = {}
    lines: dict[str, list[str]] = {}
    name = ""
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("["):
            name = line.strip("[]")
            models[name], lines[name] = Model(name), []
        elif " = " in line:
            key, value = line.split(" = ", 1)
            models[name].facts[key] = value
            if key == "like":
                lines[name] = list(lines[value])
        elif line.startswith("- "):
            lines[name].remove(line[2:])
        elif line and not line.startswith("#"):
            lines[name].append(line)
    for name, model in models.items():
        for line in lines[name]:
            _read_tensors(line, model.tensors)
    return models


def _read_tensors(line: str, tensors: Tensors) -> None:
    pattern, size, kind = line.split(" ")
    shape = () if size == "-" else tuple(int(part) for part in size.split("x"))
    pattern, plus, _ = pattern.partition("+")
    for name in expand(pattern):
        tensors[name] = (shape, kind)
        if plus:
            tensors[f"{name.removesuffix('.weight')}.bias"] = (shape[:1], BIAS)


def expand(pattern: str) -> Iterator[str]:
    """All names that `a.{0-2,5}.b` stands for."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    numbers = [list(_numbers(part)) for part in parts[1::2]]
    for chosen in product(*numbers):
        yield "".join(text + str(number) for text, number in zip(parts[::2], [*chosen, ""], strict=True))


def _numbers(ranges: str) -> Iterator[int]:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def write(path: Path, models: Iterable[Model], heading: str) -> None:
    """Writes a data file that `read` gives back."""
    lines = [f"# {line}" for line in heading.splitlines()]
    earlier: dict[str, list[str]] = {}
    for model in models:
        own = collapse(model.tensors)
        lines += ["", f"[{model.name}]", *(f"{key} = {value}" for key, value in model.facts.items())]
        lines += min([own, *(_changes(own, name, base) for name, base in earlier.items())], key=len)
        earlier[model.name] = own
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def _changes(own: list[str], name: str, base: list[str]) -> list[str]:
    """Lines that make a model of an earlier one."""
    mine, theirs = set(own), set(base)
    return [f"like = {name}", *(f"- {line}" for line in base if line not in mine), *(x for x in own if x not in theirs)]


def collapse(tensors: Tensors) -> list[str]:
    """The tensors as lines of text: numbered blocks together, in the order of their first mention."""
    groups: dict[tuple[str, str, str], list[tuple[int, ...]]] = {}
    for name, (shape, kind) in tensors.items():
        if name.endswith(".bias") and _implied(name, tensors):
            continue
        with_bias = name.endswith(".weight") and _implied(f"{name.removesuffix('.weight')}.bias", tensors)
        template = _NUMBER.sub("{}", name) + ("+bias" if with_bias else "")
        size = "x".join(map(str, shape)) or "-"
        groups.setdefault((template, size, kind), []).append(tuple(map(int, _NUMBER.findall(name))))
    return [f"{_filled(template, ranges)} {size} {kind}"
            for (template, size, kind), numbers in groups.items() for ranges in _ranges(numbers)]


def _implied(bias: str, tensors: Tensors) -> bool:
    weight = tensors.get(f"{bias.removesuffix('.bias')}.weight")
    return weight is not None and tensors.get(bias) == (weight[0][:1], BIAS)


def _filled(template: str, ranges: tuple[str, ...]) -> str:
    parts = template.split("{}")
    texts = [text if text.isdigit() else f"{{{text}}}" for text in ranges]
    return "".join(part + text for part, text in zip(parts, [*texts, ""], strict=True))


def _ranges(numbers: list[tuple[int, ...]]) -> list[tuple[str, ...]]:
    """Tuples of numbers as products of ranges: those with equal rests behind the first number go together."""
    if not numbers[0]:
        return [()]
    rests: dict[int, list[tuple[int, ...]]] = {}
    for first, *rest in numbers:
        rests.setdefault(first, []).append(tuple(rest))
    by_rest: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first, rest in rests.items():
        by_rest.setdefault(tuple(sorted(rest)), []).append(first)
    return [(_spans(firsts), *tail) for rest, firsts in by_rest.items() for tail in _ranges(list(rest))]


def _spans(numbers: list[int]) -> str:
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
