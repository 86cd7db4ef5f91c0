"""A real browser in front of a real ComfyUI: what a newcomer does, in both of the front end's renderers."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from comfy_server import TINYFLUX, ComfyServer, find_comfy, find_python, link, shared_models
from safetensors.torch import save_file

HERE = Path(__file__).parent
STEPS = [line.split("(")[0].split()[-1] for line in (HERE / "drive.mjs").read_text("utf-8").splitlines()
         if line.startswith("  async ")] + ["page_has_no_errors"]
RENDERERS = ["canvas", "vue"]

pytestmark = [pytest.mark.slow, pytest.mark.comfy]


def find_browser() -> str | None:
    """CHROMIUM, else what is on the path."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def tools() -> tuple[str, str]:
    """Node and the browser."""
    node, browser = shutil.which("node"), find_browser()
    if not browser:
        pytest.skip("no browser: set CHROMIUM to one")
    if not node:
        pytest.skip("no node to drive the browser")
    found = subprocess.run([node, "--input-type=module", "-e", "import './page.mjs'"], cwd=HERE, capture_output=True,
                           check=False)
    if found.returncode:
        pytest.skip("no playwright-core: install it with npm, and set PLAYWRIGHT_CORE to the folder that holds its "
                    "node_modules")
    return node, browser


@pytest.fixture(scope="session")
def server(tools, tmp_path_factory: pytest.TempPathFactory):
    comfy = find_comfy()
    python = comfy and find_python(comfy)
    models = shared_models()
    if not python or models is None:
        pytest.skip("no ComfyUI with its Python, or no trained test model")
    with ComfyServer(comfy, python, tmp_path_factory.mktemp("browser")) as running:
        folder = running.models / "diffusion_models"
        link(models / TINYFLUX, folder / TINYFLUX)
        save_file({f"double_blocks.0.img_attn.qkv.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"},
                  folder / "a_lora.safetensors")
        yield running


@pytest.fixture(scope="session")
def outcomes(tools, server: ComfyServer) -> dict[str, dict[str, str]]:
    """By renderer and step: what went wrong, '' for nothing. TPEC_SCREENSHOTS names a folder for pictures."""
    node, browser = tools
    found = {}
    for renderer in RENDERERS:
        command = [node, "drive.mjs", server.address, browser, renderer, f"diffusion_models/{TINYFLUX}",
                   "diffusion_models/a_lora.safetensors", os.environ.get("TPEC_SCREENSHOTS", "")]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=4000, check=False)
        found[renderer] = json.loads(done.stdout) if done.returncode == 0 else {}
        assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("step", STEPS)
def test_step(outcomes: dict[str, dict[str, str]], renderer: str, step: str) -> None:
    assert outcomes[renderer][step] == ""
