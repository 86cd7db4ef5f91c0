"""A model that nothing is connected to calibrates itself, and everything that keeps it from it is a sentence."""

import json
import re

import inventory
import models
import prompts as p
import pytest
import torch
from comfy_server import ComfyServer, link
from safetensors.torch import save_file
from test_calibrate_nodes import calibrating, velocity_ratio

STARTS = "calibrating first"


def by_default(checkpoint: str, **settings: object) -> dict[str, dict]:
    """Nodes `load` and `quantize` as earlier versions' prompts have them: not a word of calibrating."""
    nodes = p.quantizing(checkpoint, **settings)
    if "calibrate" not in settings:
        del nodes["quantize"]["inputs"]["calibrate"]
    return nodes


@pytest.fixture(scope="module")
def tinysd3(server: ComfyServer, shared_models) -> str:
    name = "tinysd3_shapes_bf16.safetensors"
    source = shared_models.parent / "tinysd3-shapes" / name
    if not source.is_file():
        pytest.skip(f"no trained test model: {source} is not there")
    link(source, server.models / "diffusion_models" / name)
    return name


@pytest.mark.slow
@pytest.mark.parametrize(("model", "most"), [("tinyflux", 0.50), ("tinysd3", 0.48)])
def test_three_nodes_with_defaults_halve_the_error(server: ComfyServer, request, figures, model: str, most: float):
    name = request.getfixturevalue(model)
    start = len(server.log())
    outcome = server.succeed({**by_default(f"diffusion_models/{name}"), **p.saving(f"{model}_auto")}, 3600)
    log = server.log()[start:]
    assert log.count(STARTS) == 1 and re.search("take up to .* GB of (memory|VRAM)", log), "what it takes is said"
    assert "calibrated itself: " in outcome.text("quantize")
    ratio = velocity_ratio(server.models / "diffusion_models" / f"{model}_auto.safetensors")
    figures.append(f"{model}, nothing but three nodes: velocity error {ratio:.3f} x round to nearest's")
    assert ratio <= most
    again = server.succeed({**by_default(f"diffusion_models/{name}", format="scaled_fp8"),
                            **p.saving(f"{model}_other_format")})
    assert "calibrated itself: " in again.text("quantize") and server.log()[start:].count(STARTS) == 1, "sampled once"


def small(server: ComfyServer, name: str, **sizes: int) -> str:
    """A Flux layout with random weights, fast to sample."""
    models.save(models.flux(hidden=128, **sizes), server.models / "diffusion_models" / name)
    return f"diffusion_models/{name}"


def test_never_and_what_makes_no_use_of_it_sample_nothing(server: ComfyServer):
    name, start = small(server, "unsampled.safetensors", seed=11), len(server.log())
    server.succeed({**by_default(name, calibrate="never"), "show": p.node("PreviewAny", source=["quantize", 1])})
    server.succeed({**by_default(name, method="nearest"), "show": p.node("PreviewAny", source=["quantize", 1])})
    assert STARTS not in server.log()[start:]


def test_a_connected_calibration_wins(server: ComfyServer, tinyflux: str):
    nodes = {**calibrating(tinyflux, count=1, steps=1), **by_default(f"diffusion_models/{tinyflux}",
                                                                     calibration=["calibrate", 0])}
    start = len(server.log())
    outcome = server.succeed({**nodes, "show": p.node("PreviewAny", source=["quantize", 1])})
    assert STARTS not in server.log()[start:] and "calibrated itself" not in outcome.text("quantize")


@pytest.mark.slow
def test_a_model_of_the_graph_samples_itself(server: ComfyServer):
    small(server, "in_graph.safetensors", seed=12)
    outcome = server.succeed({**p.stock_loader("in_graph.safetensors"),
                              **p.quantizing_model(["model", 0], calibrate="auto"),
                              "show": p.node("PreviewAny", source=["quantize", 1])}, 580)
    assert "calibrated itself: " in outcome.text("quantize") and "could not" not in outcome.text("quantize")


def test_what_comfyui_cannot_load_says_why_and_is_quantized_all_the_same(server: ComfyServer):
    tensors = models.flux(hidden=128, seed=14)
    names = sorted(tensors)
    folder = server.models / "diffusion_models" / "sharded"
    folder.mkdir(exist_ok=True)
    parts = {f"m-0000{part + 1}-of-00002.safetensors": names[part::2] for part in (0, 1)}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "m.safetensors.index.json").write_text(json.dumps(index))
    outcome = server.succeed({**by_default("diffusion_models/sharded/m.safetensors.index.json"),
                              "show": p.node("PreviewAny", source=["quantize", 1])})
    text = outcome.text("quantize")
    assert "The model could not calibrate itself: ComfyUI loads no model from 2 files." in text
    assert "lower than plain FP8" in text or "as with plain FP8" in text


@pytest.mark.slow
def test_a_text_encoder_encodes_the_built_in_texts(server: ComfyServer):
    layout, make = inventory.read(inventory.DATA / "encoders.txt")["qwen3-0.6b"], torch.Generator().manual_seed(0)
    models.save({name: (torch.randn(shape, generator=make) / shape[-1] ** 0.5).bfloat16() if len(shape) > 1
                 else torch.ones(shape, dtype=torch.bfloat16) for name, (shape, _) in layout.tensors.items()},
                server.models / "text_encoders" / "qwen3_small.safetensors")
    outcome = server.succeed({**by_default("text_encoders/qwen3_small.safetensors", num_iter=0),
                              "show": p.node("PreviewAny", source=["quantize", 1])}, 1200)
    assert "calibrated itself: " in outcome.text("quantize") and "32 runs" in outcome.text("quantize")


@pytest.mark.slow
def test_a_calibration_of_a_relative_is_used_and_named(server: ComfyServer):
    small(server, "base.safetensors", seed=15)
    tuned = models.flux(hidden=128, seed=15)
    for name, tensor in tuned.items():
        if "attn" in name and tensor.ndim == 2:
            tuned[name] = (tensor.float() * 1.1).to(torch.bfloat16)
    models.save(tuned, server.models / "diffusion_models" / "tuned.safetensors")
    stored = {"context": torch.randn(1, 8, 64), "pooled": torch.randn(1, 64)}
    save_file(stored, server.base / "input" / "small.safetensors")
    nodes = p.stock_loader("base.safetensors")
    nodes |= {"noise": p.node("TestStoredConditioning", filename="small.safetensors", first=0, count=1, empty=False),
              "latent": p.node("EmptySD3LatentImage", width=64, height=64, batch_size=1)}
    nodes["calibrate"] = p.node(
        "TPECCalibrate", model=["model", 0], positive=["noise", 0], negative=["noise", 0], latent_image=["latent", 0],
        seed=0, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", runs=1)
    for name, relative in (("base", False), ("tuned", True)):
        outcome = server.succeed({
            **nodes, **by_default(f"diffusion_models/{name}.safetensors", calibration=["calibrate", 0]),
            "show": p.node("PreviewAny", source=["quantize", 1])})
        assert ("relative of this model" in outcome.text("quantize")) == relative


@pytest.mark.slow
def test_a_model_with_a_lora_is_a_relative_of_the_one_without_but_not_of_itself(server: ComfyServer):
    base = models.flux(hidden=128, seed=16)
    models.save(base, server.models / "diffusion_models" / "without_lora.safetensors")
    (server.models / "loras").mkdir(exist_ok=True)
    models.save(models.lora(base, size=0.3), server.models / "loras" / "relative.safetensors")
    loras = {**p.stock_loader("without_lora.safetensors"), **p.with_lora("relative.safetensors")}
    itself = server.succeed({**loras, **p.quantizing_model(["lora", 0], calibrate="auto"),
                             "show": p.node("PreviewAny", source=["quantize", 1])}, 580)
    assert "calibrated itself: " in itself.text("quantize") and "relative of" not in itself.text("quantize")
    save_file({"context": torch.randn(1, 8, 64), "pooled": torch.randn(1, 64)},
              server.base / "input" / "small.safetensors")
    other = server.succeed({
        **loras, **p.quantizing_model(["lora", 0], calibration=["calibrate", 0]),
        "noise": p.node("TestStoredConditioning", filename="small.safetensors", first=0, count=1, empty=False),
        "latent": p.node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "calibrate": p.node("TPECCalibrate", model=["model", 0], positive=["noise", 0], negative=["noise", 0],
                            latent_image=["latent", 0], seed=0, steps=2, cfg=1.0, sampler_name="euler",
                            scheduler="simple", runs=1),
        "show": p.node("PreviewAny", source=["quantize", 1])})
    assert "relative of this model" in other.text("quantize")
