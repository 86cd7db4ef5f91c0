"""The session's ComfyUI, its test models, and the prompts the tests are made of."""

from pathlib import Path

import pytest
from comfy_server import TINYFLUX, ComfyServer, find_comfy, find_python, link
from comfy_server import shared_models as find_shared_models

CONDITIONING = "conditioning.safetensors"


_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> list[str]:
    """Measured numbers worth reading; printed below the results."""
    return pytestconfig.stash.setdefault(_FIGURES, [])


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    for line in config.stash.get(_FIGURES, []):
        terminalreporter.write_line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.comfy)


@pytest.fixture(scope="session")
def comfy_install() -> tuple[Path, str]:
    """ComfyUI's folder and its Python."""
    path = find_comfy()
    if path is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH to one")
    python = find_python(path)
    if python is None:
        pytest.skip(f"no Python with ComfyUI's requirements beside {path}: set COMFYUI_PYTHON to one")
    return path, python


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder with the small trained model."""
    folder = find_shared_models()
    if folder is None:
        pytest.skip("no trained test model: set TPEC_SHARED_MODELS to its folder")
    return folder


@pytest.fixture(scope="session")
def server(comfy_install: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory):
    path, python = comfy_install
    with ComfyServer(path, python, tmp_path_factory.mktemp("comfy")) as running:
        yield running


@pytest.fixture(scope="session")
def tinyflux(server: ComfyServer, shared_models: Path) -> str:
    """The trained model's name in the stock loader's list; its conditioning lies in the input folder."""
    link(shared_models / TINYFLUX, server.models / "diffusion_models" / TINYFLUX)
    link(shared_models / CONDITIONING, server.base / "input" / CONDITIONING)
    return TINYFLUX
