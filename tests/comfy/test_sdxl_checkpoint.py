"""A full checkpoint in SDXL layout: only its UNet becomes FP8, and the stock nodes make a picture with it."""

import subprocess
from pathlib import Path

import prompts as p
import pytest
import torch
from comfy_server import ComfyServer
from safetensors import safe_open

SCRIPT = Path(__file__).parent / "make_sdxl.py"
UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def sdxl(server: ComfyServer, comfy_install: tuple[Path, str]) -> str:
    """A checkpoint of two gigabytes: ComfyUI fixes the sizes of CLIP-L, CLIP-G and the VAE."""
    path, python = comfy_install
    file = server.models / "checkpoints" / "sdxl_layout.safetensors"
    done = subprocess.run([python, "-W", "ignore", SCRIPT, path, file], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return file.name


def picture(name: object) -> dict[str, dict]:
    """Stock nodes from a checkpoint's name to a picture, with the latent saved."""
    return {
        "all": p.node("CheckpointLoaderSimple", ckpt_name=name),
        "positive": p.node("CLIPTextEncode", clip=["all", 1], text="a red square beside a blue circle"),
        "negative": p.node("CLIPTextEncode", clip=["all", 1], text=""),
        "latent": p.node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": p.node("KSampler", model=["all", 0], positive=["positive", 0], negative=["negative", 0],
                          latent_image=["latent", 0], seed=3, steps=1, cfg=2.0, sampler_name="euler",
                          scheduler="normal", denoise=1.0),
        "keep": p.node("SaveLatent", samples=["sampler", 0], filename_prefix="sdxl"),
        "decode": p.node("VAEDecode", samples=["sampler", 0], vae=["all", 2]),
        "image": p.node("SaveImage", images=["decode", 0], filename_prefix="sdxl"),
    }


@pytest.mark.slow
def test_sdxl_layout_from_checkpoint_to_picture_in_one_prompt(server: ComfyServer, sdxl: str) -> None:
    folder = server.models / "checkpoints"
    outcome = server.succeed({**p.quantizing(f"checkpoints/{sdxl}", method="nearest"), **p.saving("sdxl_fp8"),
                              **picture(["save", 0])}, seconds=900)
    assert outcome.outputs["image"]["images"]
    with safe_open(folder / sdxl, "pt") as original, safe_open(folder / "sdxl_fp8.safetensors", "pt") as result:
        names = set(result.keys())
        for name in original.keys():
            assert name in names
            if not name.startswith(UNET):
                assert torch.equal(result.get_tensor(name), original.get_tensor(name)), name
        fp8 = [name for name in names if result.get_slice(name).get_dtype() == "F8_E4M3"]
    weights = [name for name in fp8 if name.endswith(".weight")]
    assert len(weights) > 100
    assert all(name.startswith(UNET) for name in fp8 if name != "scaled_fp8")
    plain = server.succeed(picture(sdxl), seconds=900)
    assert p.psnr(p.saved_latent(server, outcome), p.saved_latent(server, plain)) > 25
