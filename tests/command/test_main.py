"""The program's entry: what is missing is said in one sentence, and the input is fetched early."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from samples import REPOSITORY, environment, names_in, run_cli, save_flux

#: A Python that lacks a package, for the module and for the console script.
WITHOUT = """import runpy, sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
missing, entry = sys.argv[1:3]
sys.meta_path.insert(0, Lacking())
sys.argv[:] = ["tpec", *sys.argv[3:]]
if entry == "module":
    runpy.run_module("tpec", run_name="__main__")
module, _, function = entry.partition(":")
sys.exit(getattr(__import__(module, fromlist=["x"]), function)())"""


def console_script() -> str:
    """What the installed command `tpec` calls."""
    return re.search(r'^tpec = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)[1]


@pytest.mark.parametrize("package", ["torch", "numpy"])
@pytest.mark.parametrize("entry", ["module", "script"])
def test_missing_package_is_one_sentence(tmp_path: Path, package: str, entry: str) -> None:
    source = save_flux(tmp_path)
    for arguments in (["quantize", source, "-o", tmp_path / "q.safetensors"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", WITHOUT, package, console_script() if entry == "script" else entry,
                               *map(str, arguments)], cwd=tmp_path, env=environment(), capture_output=True, text=True,
                              timeout=240)
        assert done.returncode == 1
        assert done.stdout == ""
        assert re.fullmatch(rf"tpec: The package {package} is not installed: [^\n]*\[cli\][^\n]*\n", done.stderr)
    assert names_in(tmp_path) == {"model.safetensors"}


@pytest.mark.parametrize("package", ["torch", "numpy"])
def test_package_that_cannot_be_loaded_is_one_sentence(tmp_path: Path, package: str) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise OSError('a library\\nis missing')")
    env = environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    done = subprocess.run([sys.executable, "-m", "tpec", "--version"], cwd=tmp_path, env=env, capture_output=True,
                          text=True, timeout=240)
    assert done.returncode == 1
    assert re.fullmatch(rf"tpec: The package {package} cannot be imported \(a library is missing\): .*\n", done.stderr)


NO_ROOM = """import runpy, sys
class NoRoom:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            raise MemoryError
module = sys.argv.pop(1)
sys.meta_path.insert(0, NoRoom())
runpy.run_module("tpec", run_name="__main__")"""


@pytest.mark.parametrize("module", ["torch", "tpec.command.cli", "html.entities"])
def test_memory_that_ends_while_loading_is_one_sentence(tmp_path: Path, module: str) -> None:
    done = subprocess.run([sys.executable, "-c", NO_ROOM, module, "--version"], cwd=tmp_path, env=environment(),
                          capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"tpec: Memory ran out while the program was loaded: [^\n]*\n", done.stderr)


FETCH = """import os, sys
import tpec.__main__ as program
fetched = []
os.posix_fadvise = lambda handle, *more: fetched.append(os.readlink(f"/proc/self/fd/{handle}"))
if sys.argv[1] == "no figures":
    def sysconf(name):
        raise ValueError("unrecognized configuration name")
    os.sysconf = sysconf
program._fetch_inputs(sys.argv[2:])
print("\\n".join(fetched))"""


def fetched(kind: str, *arguments: object) -> list[str]:
    done = subprocess.run([sys.executable, "-c", FETCH, kind, *map(str, arguments)], env=environment(),
                          capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_the_input_is_fetched_and_nothing_else(tmp_path: Path) -> None:
    names = ("in.safetensors", "in.sft", "IN.SafeTensors", "out.safetensors", "c.safetensors")
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_bytes(b"x")
    *inputs, output, calibration = paths
    for source in inputs:
        assert fetched("", "-o", output, "--calibration", calibration, source) == [str(source)]
        assert fetched("", "--quiet", source, "-o", output) == [str(source)]
        assert fetched("", "-o", output, "--input", source) == [str(source)]
    assert fetched("", "--output", output) == []
    assert fetched("", tmp_path / "none.safetensors", tmp_path) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_system_that_does_not_know_its_memory_fetches_nothing(tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    source.write_bytes(b"x")
    assert fetched("no figures", source) == []


def test_version_by_the_module(tmp_path: Path) -> None:
    done = run_cli("--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
