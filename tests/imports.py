"""Which modules of the pack import which, read from the sources."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from samples import REPOSITORY

PACK = sorted(path for folder in ("tpec", "nodes") for path in (REPOSITORY / folder).rglob("*.py"))
#: By their paths below the repository, without suffix.
MODULES = {path.relative_to(REPOSITORY).with_suffix("").parts: path for path in PACK}


class Import(NamedTuple):
    """`from .target import name`: the target as a path below the repository, without suffix."""

    target: tuple[str, ...]
    name: str
    line: int


def relative_imports(path: Path, root: Path = REPOSITORY, in_functions: bool = True) -> Iterator[Import]:
    """Every relative import, also those inside functions unless told otherwise."""
    folder = path.relative_to(root).parent.parts
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree) if in_functions else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - (node.level - 1)]
            target = (*base, *(node.module.split(".") if node.module else ()))
            yield from (Import(target, name.name, node.lineno) for name in node.names)


def imported_by(path: Path) -> set[tuple[str, ...]]:
    """The modules, of MODULES, that importing this one imports at once."""
    return {(*found.target, found.name) if (*found.target, found.name) in MODULES else found.target
            for found in relative_imports(path, in_functions=False)} & MODULES.keys()


@cache
def at_start() -> frozenset[tuple[str, ...]]:
    """What ComfyUI's start imports, which asks for the nodes; packages as their `__init__`."""
    found: set[tuple[str, ...]] = set()
    ahead = {("nodes", "extension")}
    while ahead:
        parts = ahead.pop()
        found.add(parts)
        packages = {(*parts[:length], "__init__") for length in range(1, len(parts))}
        ahead |= (packages | imported_by(MODULES[parts])) - found
    return frozenset(found)
