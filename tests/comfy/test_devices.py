"""Several devices share one result; on a machine with GPUs they do as well."""

import subprocess
from pathlib import Path

import models
import prompts as p
import pytest
from comfy_server import ComfyServer

from tpec.check.verify import verify

SOURCE = "devices.safetensors"


def quantized(server: ComfyServer, device: str, **settings: object) -> tuple[str, Path]:
    """The node's text for a small model, and the saved file."""
    folder = server.models / "diffusion_models"
    if not (folder / SOURCE).exists():
        models.save(models.flux(hidden=256, double=2, single=2), folder / SOURCE)
    name = f"on_{device}".replace(":", "").replace(",", "_").replace(" ", "_")
    outcome = server.succeed({**p.quantizing(f"diffusion_models/{SOURCE}", device=device, **settings),
                              **p.saving(name, if_exists="overwrite")})
    return outcome.text("quantize"), folder / f"{name}.safetensors"


def test_without_gpus_there_is_the_cpu(server: ComfyServer):
    assert server.choices("TPECQuantizeFP8", "device") == ["auto", "cpu"]


@pytest.mark.parametrize("method", ["tpec", "nearest"])
def test_two_lanes_give_what_one_gives(server: ComfyServer, method: str):
    one, first = quantized(server, "cpu", method=method)
    two, second = quantized(server, "cpu,cpu", method=method)
    assert " on cpu\n" in one and " on cpu, cpu\n" in two
    assert first.read_bytes() == second.read_bytes()
    assert verify(server.models / "diffusion_models" / SOURCE, second).ok


def test_own_choice_is_not_computed_again_under_its_name(server: ComfyServer):
    quantized(server, "auto", num_iter=2)
    results = server.temp / "tpec" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    quantized(server, "cpu" if server.cpu else "cuda:0", num_iter=2)
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before


def test_error_in_one_lane_ends_the_other(server: ComfyServer):
    tensors = models.flux(hidden=256)
    tensors["single_blocks.0.linear2.weight"][7, 7] = float("inf")
    models.save(tensors, server.models / "diffusion_models" / "broken_lane.safetensors")
    results = server.temp / "tpec" / "results"
    before = set(results.glob("*"))
    outcome = server.run({**p.quantizing("diffusion_models/broken_lane.safetensors", device="cpu, cpu"),
                          **p.saving("never")})
    assert "single_blocks.0.linear2.weight" in outcome.error and outcome.error.endswith(".")
    assert set(results.glob("*")) == before


@pytest.fixture(scope="module")
def gpu_server(comfy_install: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory):
    """A second ComfyUI, on this machine's GPUs."""
    path, python = comfy_install
    count = subprocess.run([python, "-c", "import torch; print(torch.cuda.device_count())"], capture_output=True,
                           text=True, check=True).stdout.strip()
    if count == "0":
        pytest.skip("needs a CUDA device")
    with ComfyServer(path, python, tmp_path_factory.mktemp("gpus"), cpu=False) as running:
        running.gpus = [f"cuda:{index}" for index in range(int(count))]
        yield running


@pytest.mark.cuda
def test_gpus_are_offered_where_there_are_several(gpu_server: ComfyServer):
    several = ["all GPUs", *gpu_server.gpus] if len(gpu_server.gpus) > 1 else []
    assert gpu_server.choices("TPECQuantizeFP8", "device") == ["auto", "cpu", *several]


@pytest.mark.cuda
def test_all_gpus_and_two_lanes_on_one_give_what_one_gives(gpu_server: ComfyServer):
    one, first = quantized(gpu_server, "cuda:0")
    assert " on cuda:0\n" in one
    for device, words in (("all GPUs", ", ".join(gpu_server.gpus)), ("cuda:0,cuda:0", "cuda:0, cuda:0")):
        text, file = quantized(gpu_server, device)
        assert f" on {words}\n" in text
        assert file.read_bytes() == first.read_bytes()
        assert verify(gpu_server.models / "diffusion_models" / SOURCE, file).ok
