"""tests/data is what this ComfyUI says about its models."""

import re
import subprocess
from pathlib import Path

import inventory
import pytest

SCRIPT = Path(__file__).parent / "build_inventory.py"
VERSION = "0.33.0"
A_FEW = ["sdxl", "flux1-dev", "qwen-image", "z-image", "wan2.1-i2v-14b", "hunyuan-video-t2v", "pixeldit-t2i",
         "ace-step-1.5"]


def rebuild(install: tuple[Path, str], out: Path, *names: str) -> None:
    path, python = install
    version = re.search(r'"([^"]+)"', (path / "comfyui_version.py").read_text())
    if version is None or version[1] != VERSION:
        pytest.skip(f"the inventory is of ComfyUI {VERSION}")
    done = subprocess.run([python, "-W", "ignore", SCRIPT, path, out, *names], capture_output=True, text=True,
                          timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]


def assert_same(file: str, out: Path, names: list[str] | None = None) -> None:
    committed, built = inventory.read(inventory.DATA / file), inventory.read(out / file)
    assert names is None or sorted(built) == sorted(names)
    for name in names or [*committed, *built]:
        ours, its = committed[name], built[name]
        assert ours.tensors == its.tensors, f"{file}: {name}"
        assert ours.facts | {"like": ""} == its.facts | {"like": ""}, f"{file}: {name}"


def test_a_few_models_are_as_committed(comfy_install: tuple[Path, str], tmp_path: Path) -> None:
    rebuild(comfy_install, tmp_path, *A_FEW)
    assert_same("diffusion.txt", tmp_path, A_FEW)


@pytest.mark.slow
def test_all_models_are_as_committed(comfy_install: tuple[Path, str], tmp_path: Path) -> None:
    rebuild(comfy_install, tmp_path)
    for file in ("diffusion.txt", "encoders.txt", "loaders.txt"):
        assert_same(file, tmp_path)
