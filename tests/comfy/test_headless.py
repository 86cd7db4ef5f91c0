"""docs/headless.md: its prompt and its client, run as they stand there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import models
import pytest
from comfy_server import REPOSITORY, ComfyServer

NAME = "headless.safetensors"


def blocks(language: str) -> list[str]:
    page = (REPOSITORY / "docs" / "headless.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.fixture
def client(server: ComfyServer, tmp_path: Path):
    """Runs the page's client in an empty environment: arguments are the checkpoint and the name."""
    models.save(models.flux(hidden=128), server.models / "diffusion_models" / NAME)
    (tmp_path / "client.py").write_text(blocks("python")[0], "utf-8")
    (tmp_path / "quantize.json").write_text(blocks("json")[0], "utf-8")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-I", "-S", "client.py", server.address, "quantize.json", *arguments],
                              cwd=tmp_path, env={}, capture_output=True, text=True, timeout=240)

    return run


def test_client_quantizes_and_prints_what_came_of_it(server: ComfyServer, client):
    done = client(f"diffusion_models/{NAME}", "from_a_script")
    assert done.returncode == 0, done.stderr
    assert "lower than plain FP8" in done.stdout and "Saved as from_a_script.safetensors" in done.stdout
    assert (server.models / "diffusion_models" / "from_a_script.safetensors").is_file()


def test_client_says_in_a_sentence_what_is_wrong(client):
    done = client("diffusion_models/absent.safetensors", "never")
    assert done.returncode == 1 and "There is no model file" in done.stderr
    assert "Traceback" not in done.stderr


def test_client_is_short():
    assert len(blocks("python")[0].splitlines()) <= 34


def test_calibrated_prompt_names_real_nodes_and_inputs(server: ComfyServer):
    info = server.get("/object_info")
    for node in json.loads(blocks("json")[1]).values():
        facts = info[node["class_type"]]["input"]
        known = {**facts["required"], **facts.get("optional", {})}
        assert set(node["inputs"]) <= set(known)
        assert set(facts["required"]) <= set(node["inputs"])
