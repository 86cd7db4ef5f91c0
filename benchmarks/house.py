"""How large the house is: sizes of packages, modules and functions, docstrings, types, and imports between packages.

    python -m benchmarks.house                 the engine, its packages, the nodes, benchmarks and tests
    python -m benchmarks.house ~/other/package

Functions are counted with nested ones, from `def` to their last line; parameters without self and cls. Public is what
has no underscore before its name or its class's. A cycle is a group of modules that import each other, imports inside
functions not counted.
"""

import argparse
import ast
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
_MANY = 5
Definition = ast.FunctionDef | ast.AsyncFunctionDef
Name = tuple[str, ...]


@dataclass(frozen=True)
class Module:
    """One file.

    name: its dotted name's parts below the root's parent. is_package: an `__init__.py`. imports: the modules below the
    root that it imports.
    """

    name: Name
    is_package: bool
    lines: int
    functions: tuple[Definition, ...]
    documented: tuple[bool, ...]
    imports: frozenset[Name] = field(default_factory=frozenset)

    @property
    def package(self) -> str:
        """The folder below the root, or the module itself where there is none."""
        return self.name[1] if len(self.name) > 1 else "__init__"


def read(root: Path) -> list[Module]:
    """All modules below the folder `root`."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(root.rglob("*.py"))}
    names = {path: _name(path, root) for path in trees}
    return [_module(tree, path, names, frozenset(names.values())) for path, tree in trees.items()]


def _module(tree: ast.Module, path: Path, names: dict[Path, Name], known: frozenset[Name]) -> Module:
    return Module(names[path], path.name == "__init__.py", len(path.read_text("utf-8").splitlines()),
                  tuple(_functions(tree)), tuple(_documented(tree)),
                  frozenset(_imports(tree, path, names[path], known)))


def _name(path: Path, root: Path) -> Name:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _functions(tree: ast.Module) -> Iterator[Definition]:
    return (node for node in ast.walk(tree) if isinstance(node, Definition))


def _documented(tree: ast.Module | ast.ClassDef) -> Iterator[bool]:
    """Of every public function, method and class, whether it has a docstring."""
    for node in tree.body:
        if isinstance(node, Definition | ast.ClassDef) and not node.name.startswith("_"):
            yield ast.get_docstring(node) is not None
            if isinstance(node, ast.ClassDef):
                yield from _documented(node)


def _imports(tree: ast.Module, path: Path, name: Name, known: frozenset[Name]) -> Iterator[Name]:
    here = name if path.name == "__init__.py" else name[:-1]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            target = (*base, *(node.module.split(".") if node.module else ()))
            found = {(*target, alias.name) if (*target, alias.name) in known else target for alias in node.names}
            yield from (found & known) - {name}


def cycles(modules: Iterable[Module]) -> list[set[Name]]:
    """Groups of modules that reach each other by imports."""
    arrows = {module.name: module.imports for module in modules}
    reached = {name: _reach(name, arrows) for name in arrows}
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in arrows}
    return [set(group) for group in groups if len(group) > 1]


def _reach(start: Name, arrows: dict[Name, frozenset[Name]]) -> set[Name]:
    seen: set[Name] = set()
    left = [start]
    while left:
        for name in arrows[left.pop()] - seen:
            seen.add(name)
            left.append(name)
    return seen


def _parameters(function: Definition) -> int:
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


def _row(title: str, modules: list[Module]) -> str:
    """One line of the table, of modules that are not empty."""
    modules = [module for module in modules if module.lines]
    functions = [function for module in modules for function in module.functions]
    sizes = sorted(f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno) or [0]
    lines = [module.lines for module in modules] or [0]
    many = sum(_parameters(function) > _MANY for function in functions)
    documented = [yes for module in modules for yes in module.documented]
    typed = [function.returns is not None for function in functions]
    return (f"{title:18} {len(modules):5} {sum(lines):6}  {statistics.median(lines):4.0f} / {max(lines):<4}"
            f" {statistics.median(sizes):3.0f} / {sizes[int(.9 * (len(sizes) - 1))]:2} / {max(sizes):<3}"
            f" {many:3} ({_share(many, len(functions))})   {_share(sum(documented), len(documented))}"
            f"       {_share(sum(typed), len(typed))}")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:3.0f} %" if whole else "  -  "


def sizes(root: Path, modules: list[Module]) -> list[str]:
    """The table of sizes: the whole, then its packages."""
    lines = [f"{'':18} {'files':>5} {'lines':>6}  module      function         > 5 par.   documented  typed",
             f"{'':18} {'':5} {'':6}  med / max   med / p90 / max             (public)    (returns)",
             _row(root.name, modules)]
    packages = dict.fromkeys(module.package for module in modules if len(module.name) > 2)
    return lines + [_row(f"  {name}", [module for module in modules if module.package == name]) for name in packages]


def graph(modules: list[Module]) -> list[str]:
    """Imports: how many each module has, cycles, and which packages import which."""
    into = Counter(target for module in modules for target in module.imports)
    out = [len(module.imports) for module in modules] or [0]
    folders = Counter(module.name[:-1] for module in modules if not module.is_package)
    circles = cycles(modules)
    lines = [f"imports per module: mean {statistics.mean(out):.1f}, most {max(out)}; most imported: "
             f"{max(into.values(), default=0)} times; import cycles: {len(circles)}; widest folder: "
             f"{max(folders.values(), default=0)} modules"]
    between = Counter((module.package, target[1] if len(target) > 1 else "__init__")
                      for module in modules for target in module.imports)
    for package in dict.fromkeys(module.package for module in modules if len(module.name) > 2):
        targets = {there: count for (here, there), count in between.items() if here == package != there}
        if targets:
            lines.append(f"  {package} -> " + ", ".join(f"{name} {count}" for name, count in sorted(targets.items())))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path,
                        default=[REPOSITORY / name for name in ("tpec", "nodes", "benchmarks", "tests")])
    for root in parser.parse_args().folders:
        modules = read(root.resolve())
        print("\n".join([*sizes(root.resolve(), modules), *graph(modules), ""]))


if __name__ == "__main__":
    main()
