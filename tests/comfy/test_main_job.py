"""Load, quantize, save and sample in one prompt, then from the stock loader's list."""

from pathlib import Path

import models
import prompts as p
import pytest
import torch
from comfy_server import ComfyServer
from safetensors import safe_open
from safetensors.torch import load_file

#: Some prompts turn into another picture on the smallest change of any weight; this one does not.
STEADY = 1


@pytest.fixture(scope="module")
def reference(server: ComfyServer, tinyflux: str) -> torch.Tensor:
    """The bf16 model's own latent."""
    outcome = server.succeed({**p.stock_loader(tinyflux), **p.sampling(["model", 0], "bf16", first=STEADY)})
    return p.saved_latent(server, outcome)


@pytest.fixture(scope="module")
def one_prompt(server: ComfyServer, tinyflux: str) -> torch.Tensor:
    """The latent of the main job: quantize, save under first/tinyflux_fp8, load with the stock loader, sample."""
    outcome = server.succeed({**p.quantizing(f"diffusion_models/{tinyflux}"), **p.saving("first/tinyflux_fp8"),
                              **p.stock_loader(["save", 0]), **p.sampling(["model", 0], "saved", first=STEADY)})
    assert "lower than plain FP8" in outcome.text("quantize").splitlines()[0]
    return p.saved_latent(server, outcome)


def test_saved_file_samples_close_to_bf16_in_the_same_prompt(server, shared_models, reference, one_prompt, figures):
    file = server.models / "diffusion_models" / "first" / "tinyflux_fp8.safetensors"
    original = server.models / "diffusion_models" / "tinyflux_shapes_bf16.safetensors"
    assert file.stat().st_size <= 0.53 * original.stat().st_size
    latent_db = p.psnr(one_prompt, reference)
    image_db = p.psnr(p.image(one_prompt, shared_models), p.image(reference, shared_models), 1.0)
    figures.append(f"FP8 against bf16, {p.STEPS} steps: latent PSNR {latent_db:.1f} dB, image PSNR {image_db:.1f} dB")
    assert latent_db > 35


def test_load_scaled_gives_the_same_model_without_saving(server: ComfyServer, tinyflux: str, one_prompt):
    outcome = server.succeed({**p.quantizing(f"diffusion_models/{tinyflux}"),
                              "model": p.node("TPECLoadScaledFP8", quantized=["quantize", 0]),
                              **p.sampling(["model", 0], "loaded", first=STEADY)})
    assert torch.equal(p.saved_latent(server, outcome), one_prompt)


def test_second_prompt_picks_the_file_from_the_stock_list(server: ComfyServer, one_prompt):
    listed = [name for name in server.choices("UNETLoader", "unet_name") if name.endswith("tinyflux_fp8.safetensors")]
    assert len(listed) == 1
    outcome = server.succeed({**p.stock_loader(listed[0]), **p.sampling(["model", 0], "picked", first=STEADY)})
    assert torch.equal(p.saved_latent(server, outcome), one_prompt)


@pytest.fixture(scope="module")
def exact(server: ComfyServer, tinyflux: str, one_prompt) -> str:
    """A float32 file holding exactly what the FP8 file means."""
    folder = server.models / "diffusion_models"
    models.save(dequantized(folder / "first" / "tinyflux_fp8.safetensors"), folder / "exact.safetensors")
    return "exact.safetensors"


def dequantized(path: Path) -> models.Tensors:
    """Weights times scales in float32, everything else as it is; no quantization keys."""
    with safe_open(path, "pt") as file:
        raw = {name: file.get_tensor(name) for name in file.keys()}
    extra = (".weight_scale", ".scale_weight", ".comfy_quant", ".input_scale", ".scale_input")
    tensors = {}
    for name, tensor in raw.items():
        if name.endswith(extra) or name.endswith("scaled_fp8"):
            continue
        if tensor.dtype == torch.float8_e4m3fn:
            layer = name.removesuffix(".weight")
            scale = raw.get(f"{layer}.weight_scale", raw.get(f"{layer}.scale_weight"))
            tensor = tensor.float() * scale.float()
        tensors[name] = tensor.float()
    return tensors


@pytest.mark.parametrize("form", ["universal", "comfy_quant", "scaled_fp8"])
def test_every_format_computes_what_its_weights_mean(server: ComfyServer, tinyflux: str, exact: str, form: str):
    wanted = server.succeed({**p.stock_loader(exact), **p.sampling(["model", 0], "exact", steps=2)})
    got = server.succeed({**p.quantizing(f"diffusion_models/{tinyflux}", format=form), **p.saving(f"format_{form}"),
                          **p.stock_loader(["save", 0]), **p.sampling(["model", 0], form, steps=2)})
    assert p.psnr(p.saved_latent(server, got), p.saved_latent(server, wanted)) > 80


def test_full_checkpoint_goes_through_the_stock_checkpoint_loader(server, shared_models, tinyflux, one_prompt):
    whole = {f"model.diffusion_model.{name}": tensor
             for name, tensor in load_file(shared_models / tinyflux).items()}
    whole["vae.note"] = torch.arange(4.0)
    models.save(whole, server.models / "checkpoints" / "whole.safetensors")
    outcome = server.succeed({
        **p.quantizing("checkpoints/whole.safetensors"), **p.saving("whole_fp8", folder="output"),
        "model": p.node("CheckpointLoaderSimple", ckpt_name=["save", 0]),
        **p.sampling(["model", 0], "whole", first=STEADY),
    })
    assert torch.equal(p.saved_latent(server, outcome), one_prompt)
    with safe_open(server.output / "checkpoints" / "whole_fp8.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("vae.note"), whole["vae.note"])
