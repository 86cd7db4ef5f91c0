"""Promises about the sources themselves."""

import ast
import re
import struct
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from samples import REPOSITORY, environment

ENGINE = sorted((REPOSITORY / "tpec").rglob("*.py"))
PACK = sorted(path for folder in ("tpec", "nodes") for path in (REPOSITORY / folder).rglob("*.py"))
SOURCES = [*PACK, REPOSITORY / "__init__.py", *sorted((REPOSITORY / "tests").rglob("*.py")),
           *sorted((REPOSITORY / "benchmarks").rglob("*.py"))]
COMFY = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "execution", "server"}


def ids(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def imports(path: Path) -> set[str]:
    """Absolute imports' first names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", ENGINE, ids=ids)
def test_engine_module(path: Path) -> None:
    """No ComfyUI, nothing that pip would have to bring beside torch, numpy and tqdm, imports relative, no prints."""
    found = imports(path)
    assert not found & COMFY
    assert found <= {*sys.stdlib_module_names, "torch", "triton", "tqdm", "numpy"}
    calls = {node.func.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Name)}
    assert "print" not in calls or path.name == "cli.py"
    assert not calls & {"eval", "exec", "breakpoint", "input"}
    assert len(path.read_text().splitlines()) <= 320


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_sources_are_ascii(path: Path) -> None:
    path.read_bytes().decode("ascii")


@pytest.mark.parametrize("path", PACK, ids=ids)
def test_no_path_of_anyones_machine(path: Path) -> None:
    text = path.read_text()
    assert not [word for word in ("/root/", "/home/", "/work/", "C:\\\\") if word in text]


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
    needed = set().union(*map(imports, ENGINE)) - set(sys.stdlib_module_names) - {"triton"}
    dependencies = project_file()["project"]["dependencies"]
    assert needed <= set(dependencies) and all(name.isalnum() for name in dependencies)


def test_project_file() -> None:
    data = project_file()
    assert "comfyui" not in data["project"]["name"].lower()
    assert data["project"]["scripts"]["tpec"] == "tpec.__main__:main"
    packages = {str(path.parent.relative_to(REPOSITORY)).replace("/", ".") for path in ENGINE}
    assert set(data["tool"]["setuptools"]["packages"]) == packages
    from tpec import __version__

    assert data["project"]["version"] == __version__


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


def test_engine_imports_without_comfyui_and_under_another_name(tmp_path: Path) -> None:
    """ComfyUI imports the pack under its folder's name, so the engine is `<pack>.tpec` there."""
    pack = tmp_path / "some pack"
    pack.mkdir()
    (pack / "tpec").symlink_to(REPOSITORY / "tpec")
    (pack / "__init__.py").write_text("")
    code = ("import importlib, sys; sys.path.insert(0, sys.argv[1]); "
            "m = importlib.import_module('some pack.tpec.cli'); importlib.import_module('some pack.tpec.verify'); "
            "assert 'tpec' not in sys.modules and not any(n.startswith('comfy') for n in sys.modules)")
    env = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, cwd=tmp_path, capture_output=True,
                          text=True, timeout=240)
    assert done.returncode == 0, done.stderr
