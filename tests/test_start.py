"""What ComfyUI's start imports of the pack stays little and quick; tests/comfy/test_inside.py asks a real ComfyUI.

benchmarks/import_cost.py has the milliseconds.
"""

import ast

import pytest
from imports import MODULES, at_start

#: Modules and packages that only runs need.
OF_RUNS = {
    "tpec/check", "tpec/command", "tpec/files/checkpoint", "tpec/files/header", "tpec/files/partial",
    "tpec/files/shards", "tpec/model/diffusers", "tpec/model/families", "tpec/model/plan", "tpec/page/page",
    "tpec/patterns", "tpec/rounding", "tpec/run", "tpec/statistics", "nodes/calibration/automatic",
    "nodes/calibration/calibrating", "nodes/calibration/latents", "nodes/drawing", "nodes/handles",
    "nodes/host/progress", "nodes/host/results", "nodes/host/sampling", "nodes/host/structure", "nodes/saving",
}
#: Each of these takes a good part of a millisecond wherever it is built: more than a module without them.
SLOW = {"dataclass", "dataclasses.dataclass", "re.compile", "Enum", "enum.Enum"}
#: The nodes' defaults are those of the settings.
MAY_BE_SLOW = {("tpec", "settings")}


def built_at_import(tree: ast.Module) -> set[str]:
    """What a module calls, decorates with or inherits from while it is imported."""
    nodes, found = [*tree.body], set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.ClassDef):
            found |= {ast.unparse(part.func if isinstance(part, ast.Call) else part)
                      for part in (*node.decorator_list, *node.bases)}
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
        nodes += ast.iter_child_nodes(node)
    return found


def test_what_only_runs_need_is_imported_by_them() -> None:
    starts = {"/".join(parts).removesuffix("/__init__") for parts in at_start()}
    assert {"nodes/quantize", "tpec", "tpec/errors", "nodes/host/paths"} <= starts
    assert not [name for name in starts if any(f"{name}/".startswith(f"{heavy}/") for heavy in OF_RUNS)]


def test_those_modules_are_there() -> None:
    names = {"/".join(parts).removesuffix("/__init__") for parts in MODULES}
    assert names >= OF_RUNS


@pytest.mark.parametrize("parts", sorted(at_start()), ids="/".join)
def test_what_starts_builds_nothing_slow(parts: tuple[str, ...]) -> None:
    found = built_at_import(ast.parse(MODULES[parts].read_text("utf-8"))) & SLOW
    assert not found or parts in MAY_BE_SLOW


def test_what_is_slow_is_found() -> None:
    tree = ast.parse("@dataclass(frozen=True)\nclass A:\n    x = re.compile('b')\n\ndef late():\n    return Enum('C')")
    assert built_at_import(tree) & SLOW == {"dataclass", "re.compile"}
