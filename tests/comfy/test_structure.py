"""What the probe says of a file is what ComfyUI builds from it, for models that only ComfyUI knows too."""

import json
import subprocess
from pathlib import Path

import inventory
import models
import prompts as p
import pytest
import torch
from comfy_server import ComfyServer
from safetensors import safe_open
from test_main_job import dequantized

SCRIPT = Path(__file__).parent / "probe_structure.py"
A_FEW = ["sdxl", "flux1-dev", "z-image", "hunyuan-video-t2v", "pixeldit-t2i", "ace-step-1.5", "stable-cascade-b-lite",
         "t5-xxl", "qwen3-vl-8b", "gpt-oss-20b", "clip-l"]
PREFIXED = {"qwen-image@model.diffusion_model.": "qwen-image", "anima@net.": "anima",
            "auraflow-0.3@model.": "auraflow-0.3", "stable-audio-open-1.0@model.model.": None}


def probed(install: tuple[Path, str], *names: str) -> dict[str, dict]:
    path, python = install
    done = subprocess.run([python, "-W", "ignore", SCRIPT, path, *names], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout[done.stdout.index('{"found"'):])
    assert answer["unchanged"]
    return answer["found"]


def known() -> dict[str, inventory.Model]:
    return {name: model for file in ("diffusion.txt", "encoders.txt")
            for name, model in inventory.read(inventory.DATA / file).items()}


def assert_agrees(found: dict, model: inventory.Model) -> None:
    """The same class, and the same modules: none in files whose scales no loader honours."""
    assert found.get("name", "none") == model.facts.get("class", model.facts.get("te")), model.name
    honoured = "class" in model.facts or ALONE.get(model.name, "honoured" in model.facts)
    for key, kind in {"linears": "linear", "embeddings": "embedding", "experts": "experts"}.items():
        wanted = model.modules(kind) if honoured else frozenset()
        assert set(found.get(key, ())) == wanted, f"{model.name}: {key}"


#: Files that go into loaders of several: whether one of those, or another encoder's loader, honours their scales.
ALONE = {"byt5-small-glyph": False, "llava-llama-3-8b": True, "ace-1.5-qwen3-0.6b": True, "ace-1.5-lm-qwen3-2b": True,
         "ace-1.5-lm-qwen3-4b": True}


def test_a_few_models_are_seen_as_comfyui_builds_them(comfy_install: tuple[Path, str]) -> None:
    given = known()
    for name, found in probed(comfy_install, *A_FEW).items():
        assert_agrees(found, given[name])


@pytest.mark.slow
def test_all_models_are_seen_as_comfyui_builds_them(comfy_install: tuple[Path, str]) -> None:
    found = probed(comfy_install)
    for name, model in known().items():
        assert_agrees(found[name], model)


def test_prefixes_are_those_that_comfyui_takes_off(comfy_install: tuple[Path, str]) -> None:
    given = known()
    for name, found in probed(comfy_install, *PREFIXED).items():
        if PREFIXED[name] is None:  # its conditioner lies under no prefix: ComfyUI cannot load it so
            assert "name" not in found
        else:
            assert_agrees(found, given[PREFIXED[name]])


def new_model(context: int, width: int = 64, layers: int = 3) -> models.Tensors:
    """Files of the class that the helper nodes add to ComfyUI."""
    make = torch.Generator().manual_seed(3)
    shapes = {"enter": (width, 16), "told": (width, context), "leave": (16, width)}
    for index in range(layers):
        at = f"tower.{index}"
        shapes |= {f"{at}.kv": (2 * width, width), f"{at}.fc_up": (4 * width, width), f"{at}.down": (width, 4 * width)}
    tensors = {f"{name}.weight": torch.randn(shape, generator=make) / shape[1] ** 0.5 for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    for index in range(layers):
        tensors |= {f"tower.{index}.norm.weight": torch.ones(width), f"tower.{index}.norm.bias": torch.zeros(width),
                    f"tower.{index}.table": torch.randn(2, width, generator=make) * 0.1}
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def test_a_model_that_only_comfyui_knows_is_quantized_and_computes_what_its_weights_mean(
        server: ComfyServer, tinyflux: str) -> None:
    with safe_open(server.base / "input" / p.CONDITIONING, "pt") as file:
        context = file.get_slice("context").get_shape()[-1]
    folder = server.models / "diffusion_models"
    models.save(new_model(context), folder / "new.safetensors")
    got = server.succeed({**p.quantizing("diffusion_models/new.safetensors"), **p.saving("new_fp8"),
                          "summary": p.node("PreviewAny", source=["load", 1]),
                          **p.stock_loader(["save", 0]), **p.sampling(["model", 0], "new", steps=2)})
    assert "TestNewModel" in got.text("summary")
    with safe_open(folder / "new_fp8.safetensors", "pt") as file:
        fp8 = {name for name in file.keys() if file.get_slice(name).get_dtype() == "F8_E4M3" and name != "scaled_fp8"}
    assert fp8 == {f"tower.{index}.{name}.weight" for index in range(3) for name in ("fc_up", "down")}
    models.save(dequantized(folder / "new_fp8.safetensors"), folder / "new_exact.safetensors")
    wanted = server.succeed({**p.stock_loader("new_exact.safetensors"), **p.sampling(["model", 0], "exact", steps=2)})
    assert p.saved_latent(server, wanted).std() > 0.1
    assert p.psnr(p.saved_latent(server, got), p.saved_latent(server, wanted)) > 60
