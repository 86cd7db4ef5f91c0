"""docs/headless.md: its prompt, its client and its commands, run as they stand there."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import models
import pytest
from comfy_server import REPOSITORY, ComfyServer

NAME = "headless.safetensors"
CHECKPOINT = f"diffusion_models/{NAME}"
#: A Python without packages, variables or the repository.
EMPTY = [sys.executable, "-I", "-S"]


def blocks(language: str) -> list[str]:
    page = (REPOSITORY / "docs" / "headless.md").read_text("utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [text for named, text in found if named == language]


def save_prompt(folder: Path, **quantize: object) -> None:
    prompt = json.loads(blocks("json")[0])
    prompt["quantize"]["inputs"] |= quantize
    (folder / "quantize.json").write_text(json.dumps(prompt), "utf-8")


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts the page's client in an empty environment: arguments as on its command line."""
    (tmp_path / "client.py").write_text(blocks("python")[0], "utf-8")
    (tmp_path / "quantize.json").write_text(blocks("json")[0], "utf-8")
    return lambda *arguments: subprocess.Popen([*EMPTY, "client.py", *arguments], cwd=tmp_path, env={}, text=True,
                                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def client(server: ComfyServer, start):
    """Runs the client to its end: arguments are the checkpoint and the name; its exit code, stdout and stderr."""
    models.save(models.flux(hidden=128), server.models / "diffusion_models" / NAME)

    def run(checkpoint: str, name: str, address: str = server.address, slash: str = "") -> tuple[int, str, str]:
        process = start(address + slash, "quantize.json", checkpoint, name)
        out, err = process.communicate(timeout=240)
        assert "Traceback" not in err
        return process.returncode, out, err

    return run


def test_client_quantizes_and_prints_what_came_of_it(server: ComfyServer, client):
    code, out, err = client(CHECKPOINT, "from_a_script")
    assert code == 0, err
    assert "lower than plain FP8" in out and "Saved as from_a_script.safetensors" in out
    assert (server.models / "diffusion_models" / "from_a_script.safetensors").is_file()


def test_client_runs_again_and_never_replaces_a_file(client, tmp_path: Path):
    for exclude, saved in {"img_mlp": "again", "txt_mlp": "again_2"}.items():
        save_prompt(tmp_path, calibrate="never", exclude=exclude)
        for slash in ("", "/"):  # the second time from ComfyUI's cache
            code, out, err = client(CHECKPOINT, "again", slash=slash)
            assert code == 0 and f"Saved as {saved}.safetensors" in out, err


def test_client_says_in_a_sentence_what_is_wrong(client):
    code, _, err = client("diffusion_models/absent.safetensors", "never")
    assert code == 1 and "There is no model file" in err


def test_client_says_that_nodes_are_missing(client, tmp_path: Path):
    text = (tmp_path / "quantize.json").read_text("utf-8")
    (tmp_path / "quantize.json").write_text(text.replace("TPECQuantizeFP8", "TPECNotInstalled"), "utf-8")
    code, _, err = client(CHECKPOINT, "never")
    assert code == 1 and "'TPECNotInstalled' not found" in err


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "127.0.0.1:8188", "nowhere"])
def test_client_says_that_no_server_answers(client, address: str):
    code, _, err = client(CHECKPOINT, "never", address)
    assert code == 1 and err.startswith(f"{address}: ")


def test_client_says_that_something_else_answers(server: ComfyServer, client):
    code, _, err = client(CHECKPOINT, "never", f"{server.address}/nothing")
    assert code == 1 and re.search(r"HTTP Error 40[45]", err)


def test_client_says_how_to_call_it(start):
    _, err = start("http://127.0.0.1:8188").communicate(timeout=60)
    assert err.startswith("python3 client.py SERVER")


def test_client_says_that_it_was_interrupted(server: ComfyServer, start, tmp_path: Path):
    models.save(models.flux(hidden=128, seed=3), server.models / "diffusion_models" / NAME)
    save_prompt(tmp_path, calibrate="auto")
    begin = len(server.log())
    process = start(server.address, "quantize.json", CHECKPOINT, "stopped_client")
    server.wait_for_log("calibrating first", begin)
    server.interrupt()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1 and err == "Interrupted.\n"
    assert not list(server.models.rglob("stopped_client.safetensors*"))


def test_client_is_short():
    assert len(blocks("python")[0].splitlines()) <= 34


def test_command_calls_the_client_as_it_wants():
    command = next(line for block in blocks("") for line in block.splitlines() if "client.py" in line)
    wanted = blocks("python")[0].splitlines()[0].strip('"').partition(",")[0]
    assert len(command.split()) == len(wanted.split())


def test_command_prints_the_choices(server: ComfyServer):
    models.save(models.flux(hidden=128), server.models / "diffusion_models" / NAME)
    command = next(line for block in blocks("") for line in block.splitlines() if "object_info" in line)
    program, *arguments = shlex.split(command.replace("http://127.0.0.1:8188", server.address))
    done = subprocess.run([*EMPTY, *arguments], env={}, capture_output=True, text=True, timeout=60, check=True)
    assert program == "python3" and CHECKPOINT in done.stdout.splitlines()


def test_calibrated_prompt_names_real_nodes_inputs_and_choices(server: ComfyServer):
    info = server.get("/object_info")
    for node in json.loads(blocks("json")[1]).values():
        facts = info[node["class_type"]]["input"]
        known = {**facts["required"], **facts.get("optional", {})}
        assert set(node["inputs"]) <= set(known)
        assert set(facts["required"]) <= set(node["inputs"])
    calibrate = json.loads(blocks("json")[1])["calibrate"]["inputs"]
    for name in ("preset", "sampler_name", "scheduler"):
        assert calibrate[name] in server.choices("TPECCalibrate", name)
