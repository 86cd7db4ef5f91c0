"""The words of the table: what is known of one model layout, as plain data.

Patterns name modules or tensors without the file's prefix and match the whole name: `#` is a number, `*` anything
without a dot, `**` anything, `{a,b}` one of several; everything else stands for itself.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from ...files.header import TensorInfo

#: What becomes of a tensor.
Action = Literal["quantize", "keep", "drop"]
QUANTIZE: Final = "quantize"
KEEP: Final = "keep"
DROP: Final = "drop"

_TOKENS = re.compile(r"\*\*|[*#{},]|[^*#{},]+")
_MEANINGS = {"**": ".*", "*": "[^.]*", "#": r"\d+", "{": "(?:", ",": "|", "}": ")"}


@cache
def pattern(text: str) -> re.Pattern[str]:
    """The regular expression of a pattern, to be used with `fullmatch` or, for beginnings, with `match`."""
    return re.compile("".join(_MEANINGS.get(token) or re.escape(token) for token in _TOKENS.findall(text)))


@cache
def any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    """One regular expression for all patterns of a list, to be used with `fullmatch`."""
    return re.compile("|".join(f"(?:{pattern(text).pattern})" for text in texts) or r"(?!)")


@cache
def spelled(text: str) -> tuple[str, ...]:
    """The names that a pattern stands for, () if it stands for endlessly many (it holds `#` or `*`)."""
    if "#" in text or "*" in text:
        return ()
    end = text.find("}")
    if end < 0:
        return (text,)
    begin = text.rindex("{", 0, end)
    return tuple(name for choice in text[begin + 1:end].split(",")
                 for name in spelled(text[:begin] + choice + text[end + 1:]))


def fits(text: str, name: str) -> bool:
    """Whether the whole of `name` is what the pattern `text` describes."""
    return pattern(text).fullmatch(name) is not None


def find(text: str, names: Collection[str]) -> str:
    """The first of `names` (a mapping or a set) that fits the pattern, or ''."""
    known = spelled(text)
    if known:
        return next((name for name in known if name in names), "")
    match = pattern(text).fullmatch
    return next((name for name in names if match(name)), "")


@dataclass(frozen=True)
class Key:
    """A tensor that a layout has, by pattern; `rows` and `columns` are its allowed sizes, `dims` its rank, if given."""

    name: str
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    dims: int | None = None

    def holds(self, info: TensorInfo) -> bool:
        """Whether the tensor's shape is an allowed one (its name is not looked at)."""
        shape = info.shape
        return ((self.dims is None or len(shape) == self.dims)
                and (not self.rows or bool(shape) and shape[0] in self.rows)
                and (not self.columns or len(shape) > 1 and shape[1] in self.columns))

    def among(self, tensors: Mapping[str, TensorInfo]) -> str:
        """The name of the first of `tensors` that it stands for, or ''."""
        match = pattern(self.name).fullmatch
        names = spelled(self.name) or (name for name in tensors if match(name))
        return next((name for name in names if name in tensors and self.holds(tensors[name])), "")


@dataclass(frozen=True)
class Keep:
    """Modules that stay in high precision although ComfyUI could scale them, and why.

    `source` names who says so. `when` is a field of Settings; the rule counts only while that is true. `linear` is
    false for what looks like a Linear's weight and is none. `table` marks a token embedding whose scale ComfyUI applies
    when it looks up rows: FP8 if the user wants embeddings so.
    """

    modules: str
    reason: str
    source: str = ""
    when: str = ""
    linear: bool = True
    table: bool = False


@dataclass(frozen=True)
class Drop:
    """Tensors that ComfyUI does not read, left out of the result."""

    tensors: str
    reason: str


@dataclass(frozen=True)
class Blocks:
    """A row of numbered blocks, `name` up to its number, as in "blocks.#": no holes, and the same tensors in each.

    `varies` are patterns of tensors (without the block's own name) that only some of the blocks have; "**" takes all.
    """

    name: str
    varies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """A text encoder in full checkpoints of a family: its part's name, prefix, and the encoder's family.

    `ignored` says why ComfyUI does not apply its scales there, '' where it does.
    """

    name: str
    prefix: str
    family: str
    ignored: str = ""


@dataclass(frozen=True)
class Family:
    """A model layout.

    classes: the classes of ComfyUI's `comfy.supported_models` that it covers (text encoders: of its `TEModel`).
    needs, forbids: tensors that it always (a tuple: one of them) and never has; with the table's order they tell
        layouts apart.
    linears: the Linears that become FP8, by module pattern; what is not listed never does.
    keep: the first rule that matches wins over `linears`; its Linears become FP8 if the user names them.
    outer: tensors outside the blocks without which the model cannot run (needs are checked as well).
    kind: ComfyUI's folder for files that hold nothing else.
    variants: titles of the family's members and the key that tells each; the first one that is there counts.
    advice: for members told by a key, a sentence on how ComfyUI must load their file for its scales to be applied.
    writes_input_scale: published TPEC files carry `scale_input` for this family.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    needs: tuple[Key | tuple[Key, ...], ...]
    linears: tuple[str, ...]
    keep: tuple[Keep, ...] = ()
    forbids: tuple[str | Key, ...] = ()
    drop: tuple[Drop, ...] = ()
    blocks: tuple[Blocks, ...] = ()
    outer: tuple[str, ...] = ()
    encoders: tuple[Encoder, ...] = ()
    variants: tuple[tuple[str, str], ...] = ()
    advice: tuple[tuple[Key, str], ...] = ()
    kind: str = "diffusion_models"
    writes_input_scale: bool = False
    notes: str = ""

    def is_linear(self, module: str) -> bool:
        """Whether the table knows `module` as a Linear that ComfyUI scales, kept or not."""
        known = (*self.linears, *(rule.modules for rule in self.keep if rule.linear))
        return any_of(known).fullmatch(module) is not None

    def kept(self, module: str, settings: object) -> Keep | None:
        """The rule that keeps `module` under these settings."""
        return next((rule for rule in self.keep if fits(rule.modules, module)
                     and (not rule.when or getattr(settings, rule.when))), None)

    def dropped(self, tensor: str) -> Drop | None:
        """The rule that leaves `tensor` out."""
        return next((rule for rule in self.drop if fits(rule.tensors, tensor)), None)

    def advised(self, tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
        """The sentences of `advice` that a file with these tensors is due."""
        return tuple(sentence for key, sentence in self.advice if key.among(tensors))

    def in_block(self, module: str) -> bool:
        """Whether `module` lies in one of the numbered blocks."""
        return any_of(tuple(f"{row.name}.**" for row in self.blocks)).fullmatch(module) is not None


_REASONS = {
    "input": "input projection, sensitive",
    "text": "text projection, sensitive",
    "time": "time, guidance or vector embedder, sensitive",
    "output": "output projection, sensitive",
    "shared": "modulation that all blocks share, sensitive",
}


def outer(source: str, **modules: str) -> tuple[Keep, ...]:
    """Rules for the small layers around the blocks: what they are (a word of `_REASONS`) = their module pattern."""
    return tuple(Keep(text, _REASONS[word], source) for word, text in modules.items())


def encoder(name: str, family: str, ignored: str = "", prefix: str = "text_encoders.") -> Encoder:
    """A text encoder where ComfyUI's own checkpoints hold it."""
    return Encoder(name, f"{prefix}{name}.transformer.", family, ignored)


def keys(*names: str) -> tuple[Key, ...]:
    """Keys of any shape."""
    return tuple(Key(name) for name in names)
