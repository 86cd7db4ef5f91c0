"""Parts of the nodes in ComfyUI's own Python, with its modules but without a server."""

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def inside(comfy_install: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory):
    """Runs a script of tests/comfy/scripts in ComfyUI; its output's lines."""
    comfy, python = comfy_install
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    for name in ("PYTHONPATH", "PYTHONHOME"):
        environment.pop(name, None)

    def run(script: str, *arguments: object) -> list[str]:
        command = [python, HERE / "inside.py", comfy, HERE / "scripts" / script, *map(str, arguments)]
        process = subprocess.run(command, cwd=tmp_path_factory.mktemp("inside"), env=environment, capture_output=True,
                                 text=True, check=False)
        assert process.returncode == 0, process.stderr[-3000:]
        return process.stdout.splitlines()

    return run


def test_every_form_of_memory_error_sends_the_work_to_the_cpu(inside):
    assert inside("fallback.py") == ["cpu True"] * 5 + ["raised True"]


def test_backward_runs_restore_what_stood_there_and_say_why_they_fail(inside):
    assert inside("backward.py") == ["restored", "RuntimeError): turn", "(no grad): turn", "not enough VRAM",
                                     "not enough VRAM", "restored after errors", "both sides of every step",
                                     "runs of one step"]


def test_results_in_the_temp_folder(inside, tmp_path: Path):
    assert inside("results.py", tmp_path) == [
        "a changed file is made again", "a missing file is made again", "an intact file is not",
        "leftovers go first", "the rest stays", "then results"]
