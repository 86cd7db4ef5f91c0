"""API prompts as plain dictionaries, and what their latents say."""

import json
import math
import time
from pathlib import Path

import torch
from comfy_server import ComfyServer, Outcome
from safetensors import safe_open
from safetensors.torch import load_file

CONDITIONING = "conditioning.safetensors"
STEPS = 12


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def quantizing(checkpoint: str, family: str = "auto", **settings: object) -> dict[str, dict]:
    """Nodes `load` and `quantize`."""
    choices = {"method": "tpec", "format": "universal", "matmul": "full_precision", "calibrate": "never",
               **settings}
    return {"load": node("TPECLoadCheckpoint", checkpoint=checkpoint, family=family),
            "quantize": node("TPECQuantizeFP8", checkpoint=["load", 0], **choices)}


def saving(filename: str, folder: str = "models", if_exists: str = "error") -> dict[str, dict]:
    """Node `save`."""
    return {"save": node("TPECSaveScaledFP8", quantized=["quantize", 0], filename=filename, folder=folder,
                         if_exists=if_exists)}


def stock_loader(name: object) -> dict[str, dict]:
    """Node `model`: ComfyUI's own loader; `name` a file name or a link."""
    return {"model": node("UNETLoader", unet_name=name, weight_dtype="default")}


def with_lora(name: str, strength: float = 1.0, model: str = "model") -> dict[str, dict]:
    """Node `lora`: the stock LoRA loader on the node `model`."""
    return {"lora": node("LoraLoaderModelOnly", model=[model, 0], lora_name=name, strength_model=strength)}


def quantizing_model(model: list, **settings: object) -> dict[str, dict]:
    """Nodes `load` and `quantize` for a MODEL of the graph."""
    nodes = quantizing("", **settings)
    return {**nodes, "load": node("TPECModelSource", model=model)}


def sampling(model: list, prefix: str, seed: int = 7, steps: int = STEPS, cfg: float = 3.0, first: int = 0,
             count: int = 1) -> dict[str, dict]:
    """Nodes that sample with stored conditioning and save the latent as `prefix`; trained for 32 x 32 latents."""
    return {
        "positive": node("TestStoredConditioning", filename=CONDITIONING, first=first, count=count, empty=False),
        "negative": node("TestStoredConditioning", filename=CONDITIONING, first=first, count=count, empty=True),
        "latent": node("EmptySD3LatentImage", width=256, height=256, batch_size=count),
        "sampler": node("KSampler", model=model, positive=["positive", 0], negative=["negative", 0],
                        latent_image=["latent", 0], seed=seed, steps=steps, cfg=cfg, sampler_name="euler",
                        scheduler="simple", denoise=1.0),
        "keep": node("SaveLatent", samples=["sampler", 0], filename_prefix=prefix),
    }


def freed(server: ComfyServer) -> dict:
    """What a server holds (helper_nodes/facts.py) once told to free models and cache and to forget its history."""
    server.request("/free", {"unload_models": True, "free_memory": True})
    server.request("/history", {"clear": True})
    for _ in range(20):
        time.sleep(0.2)
        facts = json.loads(server.succeed({"facts": node("TestServerFacts")}).text("facts"))
        if not facts["models"]:
            break
    return facts


def saved_latent(server: ComfyServer, outcome: Outcome, keep: str = "keep") -> torch.Tensor:
    """The latent that the prompt saved, [count, 16, 32, 32] float32."""
    file = outcome.outputs[keep]["latents"][0]
    with safe_open(server.output / file["subfolder"] / file["filename"], "pt") as latent:
        return latent.get_tensor("latent_tensor").float()


def psnr(value: torch.Tensor, reference: torch.Tensor, span: float = 0.0) -> float:
    """In dB, against `span`, or the reference's range without one."""
    noise = (value - reference).square().mean().item()
    span = span or (reference.max() - reference.min()).item()
    return math.inf if noise == 0 else 10 * math.log10(span * span / noise)


#: Shift and scale of ComfyUI's latents of a family against what the model itself sees.
FLUX_LATENT, SD3_LATENT = (0.1159, 0.3611), (0.0609, 1.5305)


def image(latent: torch.Tensor, shared_models: Path, family: tuple[float, float] = FLUX_LATENT) -> torch.Tensor:
    """The small models' pictures [count, 3, 64, 64] in 0 .. 1; what they see are linear codes of 2 x 2 pixels."""
    codes = (latent - family[0]) * family[1]
    to_rgb = load_file(shared_models / CONDITIONING)["latent_to_rgb"].float()
    pixels = torch.einsum("bchw,cp->bphw", codes, to_rgb)
    return (torch.nn.functional.pixel_shuffle(pixels, 2) * 0.31 + 0.5).clamp(0, 1)
