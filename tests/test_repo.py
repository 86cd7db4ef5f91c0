"""Promises about the sources themselves: which package may import which, and what no module may do."""

import ast
import re
import struct
import subprocess
import sys
import urllib.parse
from collections import Counter
from pathlib import Path

import pytest
from imports import MODULES, PACK, imported_by, relative_imports
from samples import REPOSITORY, environment

ENGINE = sorted((REPOSITORY / "tpec").rglob("*.py"))
SOURCES = [*PACK, REPOSITORY / "__init__.py", *sorted((REPOSITORY / "tests").rglob("*.py")),
           *sorted((REPOSITORY / "benchmarks").rglob("*.py"))]
PAGES = [*sorted(REPOSITORY.glob("*.md")), *(path for folder in ("docs", "web", "benchmarks")
                                             for path in sorted((REPOSITORY / folder).rglob("*.md")))]
COMFY = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "execution", "server"}

#: What each package of the engine may import beside itself; the order is that of docs/architecture.md.
MAY_IMPORT = {
    "version": set(),
    "errors": set(),
    "device": {"errors"},
    "patterns": {"errors"},
    "settings": {"errors", "patterns"},
    "files": {"errors"},
    "model": {"version", "errors", "patterns", "settings", "files"},
    "statistics": {"errors", "device", "files"},
    "rounding": {"errors", "statistics"},
    "run": {"version", "errors", "device", "patterns", "settings", "files", "model", "statistics", "rounding"},
    "check": {"errors", "settings", "files", "model"},
    "page": {"version", "errors", "files", "run"},
    "command": {"version", "errors", "device", "settings", "files", "model", "statistics", "run", "check", "page"},
    "__init__": {"version", "errors", "settings", "files", "model", "statistics", "run", "check"},
    "__main__": {"command", "files"},
}
#: What a node that runs inside ComfyUI leaves to it: devices, autocast, layers of its own.
NOT_OF_COMFYUI = re.compile(
    r"\.cuda\s*\(|\.to\s*\(\s*(torch\.device\s*\(\s*)?[\"']cuda|torch\.(cuda\.)?amp\.autocast|torch\.autocast\s*\("
    r"|(?<![\w.])(torch\.)?nn\.(Linear|Conv[123]d|ConvTranspose[12]d|LayerNorm|GroupNorm|Embedding)\s*\(")
#: Questions to a disk whose "no" may be a fault of it; `tpec.files.replace` has those that tell.
NO_OR_A_FAULT = re.compile(r"os\.path\.(exists|isfile|isdir)\b|(?<!entry)\.(exists|is_file|is_dir)\(\)")
#: A folder that holds more is one that nobody sees at a glance.
MOST_FILES = 12
MOST_LINES = 320


def ids(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def absolute_imports(path: Path) -> set[str]:
    """Absolute imports' first names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def package_of(parts: tuple[str, ...]) -> str:
    """tpec/files/header -> files; tpec/errors -> errors; tpec itself -> __init__."""
    return parts[1] if len(parts) > 1 else "__init__"


def wrong_imports(root: Path) -> list[str]:
    """Imports of the engine below `root` that MAY_IMPORT does not allow."""
    wrong = []
    for path in sorted((root / "tpec").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        here = package_of(parts)
        for found in relative_imports(path, root):
            # `from . import sums` names a module, `from .sums import total` what is in it.
            there = package_of((*found.target, found.name) if len(found.target) == 1 else found.target)
            if there != here and there not in MAY_IMPORT[here]:
                wrong.append(f"{'/'.join(parts)}.py, line {found.line}: {here} must not import {there}")
    return wrong


def test_packages_import_only_what_they_may() -> None:
    assert {package_of(path.relative_to(REPOSITORY).with_suffix("").parts) for path in ENGINE} == MAY_IMPORT.keys()
    assert not wrong_imports(REPOSITORY)


def test_a_forbidden_import_is_found(tmp_path: Path) -> None:
    for path in ENGINE:
        copy = tmp_path / path.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text("utf-8"), "utf-8")
    grid = tmp_path / "tpec" / "rounding" / "grid.py"
    grid.write_text("def late():\n    from ..model.plan import Plan\n    return Plan\n\n" + grid.read_text())
    assert wrong_imports(tmp_path) == ["tpec/rounding/grid.py, line 2: rounding must not import model"]


def test_no_import_goes_in_a_circle() -> None:
    """Imports at the top of modules; those inside functions are made late for good reasons."""
    arrows = {parts: imported_by(path) for parts, path in MODULES.items()}
    while arrows:
        leaves = [parts for parts, targets in arrows.items() if not targets & arrows.keys()]
        assert leaves, f"these import each other: {sorted('/'.join(parts) for parts in arrows)}"
        for parts in leaves:
            del arrows[parts]


def test_private_names_stay_in_their_package() -> None:
    taken = [f"{ids(path)}, line {found.line}: {found.name}" for path in PACK for found in relative_imports(path)
             if found.name.startswith("_") and found.target[:-1] != path.relative_to(REPOSITORY).parent.parts
             and not found.name.startswith("__")]
    assert not taken


def test_folders_can_be_seen_at_a_glance() -> None:
    modules = Counter(path.parent for path in PACK if path.name != "__init__.py")
    assert not {ids(folder): count for folder, count in modules.items() if count > MOST_FILES}


@pytest.mark.parametrize("path", ENGINE, ids=ids)
def test_the_engine_stands_alone(path: Path) -> None:
    """No ComfyUI, and nothing that pip would have to bring beside torch, numpy and tqdm."""
    found = absolute_imports(path)
    assert not found & COMFY
    assert found <= {*sys.stdlib_module_names, "torch", "triton", "tqdm", "numpy"}


@pytest.mark.parametrize("path", PACK, ids=ids)
def test_modules_are_quiet_short_and_evaluate_nothing(path: Path) -> None:
    text = path.read_text()
    calls = {node.func.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Name)}
    assert "print" not in calls or path.parent.name == "command"
    assert not calls & {"eval", "exec", "breakpoint", "input"}
    assert len(text.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", PACK, ids=ids)
def test_no_code_and_no_pickle_is_taken_from_anywhere(path: Path) -> None:
    """What users hand us comes from strangers: no unpickling, no shell, no code from text."""
    tree = ast.parse(path.read_text("utf-8"))
    assert not absolute_imports(path) & {"pickle", "marshal", "shelve", "dill", "joblib", "yaml", "code", "runpy"}
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"torch.load", "numpy.load", "np.load", "__import__", "compile", "os.system", "os.popen"}
    words = {word.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords}
    assert not words & {"shell", "allow_pickle"}


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_sources_are_ascii(path: Path) -> None:
    path.read_bytes().decode("ascii")


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_sources_have_nothing_that_comfy_test_refuses(path: Path) -> None:
    """Its level "syntax" reads every source, tests and benchmarks too, line by line; comments are left out."""
    lines = path.read_text("utf-8").splitlines()
    assert not [line for line in lines if NOT_OF_COMFYUI.search(line) and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("path", ENGINE, ids=ids)
def test_a_failing_disk_is_not_taken_for_no(path: Path) -> None:
    if path.name != "__main__.py":  # which only has its reads begin early
        assert not [line for line in path.read_text("utf-8").splitlines() if NO_OR_A_FAULT.search(line)]


@pytest.mark.parametrize("path", PACK, ids=ids)
def test_no_path_of_anyones_machine(path: Path) -> None:
    text = path.read_text()
    assert not [word for word in ("/root/", "/home/", "/work/", "C:\\\\") if word in text]


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_every_table_has_its_head(path: Path) -> None:
    """Without one, after an empty line too, its rows are shown as text."""
    lines = path.read_text("utf-8").splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith("|") and (not at or lines[at - 1][:1] != "|")]
    assert not [lines[at] for at in starts if not re.fullmatch(r"[|:\- ]+", "".join(lines[at + 1:at + 2]))]


def project_file() -> dict:
    """Read where Python can (3.11 and later)."""
    return pytest.importorskip("tomllib").loads((REPOSITORY / "pyproject.toml").read_text())


def requirement_names(lines: list[str]) -> set[str]:
    plain = [line.partition("#")[0].strip() for line in lines]
    return {line.replace(">", "=").replace("<", "=").partition("=")[0].strip().lower() for line in plain if line}


def test_requirements_never_touch_torch() -> None:
    """A node pack that asks for torch replaces the user's CUDA build."""
    names = requirement_names((REPOSITORY / "requirements.txt").read_text().splitlines())
    assert not [name for name in names if name.startswith(("torch", "numpy", "safetensors", "comfy", "triton"))]


def test_install_brings_what_the_command_line_needs_and_replaces_nothing() -> None:
    """Names without versions: pip takes the PyTorch that is there, and brings one where there is none."""
    needed = set().union(*map(absolute_imports, ENGINE)) - set(sys.stdlib_module_names) - {"triton"}
    dependencies = project_file()["project"]["dependencies"]
    assert needed <= set(dependencies) and all(name.isalnum() for name in dependencies)


def test_project_file() -> None:
    from tpec.version import __version__

    data = project_file()
    assert "comfyui" not in data["project"]["name"].lower()
    assert data["project"]["scripts"]["tpec"] == "tpec.__main__:main"
    assert data["project"]["version"] == __version__
    where = data["tool"]["setuptools"]["packages"]["find"]
    assert where == {"include": ["tpec", "tpec.*"]}
    assert all((path.parent / "__init__.py").is_file() for path in ENGINE)


def test_registry_fields() -> None:
    """As docs.comfy.org's registry specification has them; a field that does not fit is dropped without an error."""
    facts = project_file()["tool"]["comfy"]
    assert re.fullmatch(r"[<>=!~]*\d+\.\d+\.\d+(,[<>=!~]*\d+\.\d+\.\d+)*", facts["requires-comfyui"])
    width, height = png_size(facts["Icon"])
    assert width == height and width <= 400
    width, height = png_size(facts["Banner"])
    assert 21 * height == 9 * width
    assert facts["DisplayName"] and facts["PublisherId"]


def png_size(address: str) -> tuple[int, int]:
    """Of a picture in this repository, given by its address on GitHub."""
    owner, name, _, *parts = urllib.parse.urlparse(address).path.strip("/").split("/")
    assert project_file()["project"]["urls"]["Repository"].endswith(f"{owner}/{name}")
    data = REPOSITORY.joinpath(*parts).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_extension_names_are_in_the_packs_namespace() -> None:
    """Two extensions of one name break the front end's start."""
    namespace = project_file()["tool"]["comfy"]["DisplayName"].lower().replace(" ", "")
    for path in (REPOSITORY / "web").rglob("*.js"):
        names = re.findall(r'registerExtension\(\{\s*name: "([^"]*)"', path.read_text("utf-8"))
        assert names and all(name.startswith(f"{namespace}.") for name in names)


def test_the_face_offers_what_it_names() -> None:
    import tpec

    assert all(getattr(tpec, name) is not None for name in tpec.__all__)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = tpec.nothing_of_the_kind


def test_engine_imports_without_comfyui_and_under_another_name(tmp_path: Path) -> None:
    """ComfyUI imports the pack under its folder's name, so the engine is `<pack>.tpec` there."""
    pack = tmp_path / "some pack"
    pack.mkdir()
    (pack / "tpec").symlink_to(REPOSITORY / "tpec")
    (pack / "__init__.py").write_text("")
    code = ("import importlib, sys; sys.path.insert(0, sys.argv[1]); "
            "importlib.import_module('some pack.tpec.command.cli'); "
            "importlib.import_module('some pack.tpec.check.verify'); "
            "importlib.import_module('some pack.tpec').quantize; "
            "assert 'tpec' not in sys.modules and not any(n.startswith('comfy') for n in sys.modules)")
    env = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, cwd=tmp_path, capture_output=True,
                          text=True, timeout=240)
    assert done.returncode == 0, done.stderr
