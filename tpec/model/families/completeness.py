"""Whether all of a model is there: block numbers without holes, equal blocks, and what stands around them."""

from collections import Counter
from collections.abc import Iterable, Mapping

from ...files.header import TensorInfo
from .family import Blocks, Family, any_of, find, pattern, spelled

_NAMED = 3
#: A tensor that so large a part of the blocks has belongs into each; what fewer have are additions to some of them.
_MOST = 0.75


def missing(family: Family, tensors: Mapping[str, TensorInfo]) -> str:
    """What a model lacks, as a phrase with the tensors' names, or ''; names are without the file's prefix."""
    names = tensors.keys()
    for row in family.blocks:
        lack = _missing_in(row, family, names)
        if lack:
            return lack
    for text in family.outer:
        if not find(text, names):
            return readable(text)
    return ""


def readable(text: str) -> str:
    """A pattern as people write names: the first of several ways, block 0."""
    return spelled(text.replace("#", "0").replace("*", "x"))[0]


def _missing_in(row: Blocks, family: Family, names: Iterable[str]) -> str:
    for name, blocks in _blocks(row, names).items():
        holes = sorted(set(range(max(blocks) + 1)) - blocks.keys())
        if holes:
            return f"{name}{holes[0]} (blocks up to {name}{max(blocks)} are there)"
        fixed = _in_every_block(row, family, name, blocks)
        for number, tails in sorted(blocks.items()):
            lost = sorted(fixed - tails)
            if lost:
                more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
                return ", ".join(f"{name}{number}.{tail}" for tail in lost[:_NAMED]) + more
    return ""


def _in_every_block(row: Blocks, family: Family, name: str, blocks: dict[int, set[str]]) -> set[str]:
    """What each block must have: what nearly all have, and every Linear of the table that one of them has."""
    counts = Counter(tail for tails in blocks.values() for tail in tails)
    return {tail for tail, count in counts.items() if not any_of(row.varies).fullmatch(tail)
            and (count > len(blocks) * _MOST or family.is_linear(f"{name}0.{tail.rpartition('.')[0]}"))}


def _blocks(row: Blocks, names: Iterable[str]) -> dict[str, dict[int, set[str]]]:
    """Of every row that the pattern names, by its name before the number: block number -> names within the block."""
    match = pattern(row.name.removesuffix("#")).match
    found: dict[str, dict[int, set[str]]] = {}
    for name in names:
        begin = match(name)
        number, _, tail = name[begin.end():].partition(".") if begin else ("", "", "")
        if begin and tail and number.isdigit():
            found.setdefault(begin.group(), {}).setdefault(int(number), set()).add(tail)
    return found
