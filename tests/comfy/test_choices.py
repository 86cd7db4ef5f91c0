"""Which layers become FP8, chosen in the graph: extra size for quality, and a published file's layout."""

from pathlib import Path

import models
import prompts as p
import torch
from comfy_server import ComfyServer
from safetensors.torch import load_file


def fp8_layers(path: Path) -> set[str]:
    return {name.removesuffix(".weight") for name, tensor in load_file(path).items()
            if tensor.dtype == torch.float8_e4m3fn and tensor.dim() == 2}


def test_keep_quality_and_like(server: ComfyServer) -> None:
    """keep_quality keeps layers and the report says what that buys; `like` gives another job the same layout."""
    folder = server.models / "diffusion_models"
    models.save(models.flux(hidden=128), folder / "choices.safetensors")
    made = {}
    for name, settings in (("plain", {}), ("better", {"keep_quality": 5.0}),
                           ("alike", {"like": "diffusion_models/better.safetensors"})):
        outcome = server.succeed({
            **p.quantizing("diffusion_models/choices.safetensors", method="nearest", **settings),
            **p.saving(name, if_exists="overwrite"), "text": p.node("PreviewAny", source=["quantize", 1])})
        made[name] = fp8_layers(folder / f"{name}.safetensors"), outcome.text("text")
    kept = made["plain"][0] - made["better"][0]
    assert "double_blocks.0.img_attn.proj" in kept and "keep_quality 5 %" in made["better"][1]
    assert made["alike"][0] == made["better"][0]


def test_words_of_wrong_choices(server: ComfyServer) -> None:
    """A template of another kind and a matmul that wants a calibration end in one sentence."""
    folder = server.models / "diffusion_models"
    models.save(models.flux(hidden=128), folder / "choices.safetensors")
    for settings, words in (({"like": "diffusion_models/choices.safetensors"}, "holds no quantized layer"),
                            ({"matmul": "auto"}, "needs a calibration")):
        outcome = server.run({**p.quantizing("diffusion_models/choices.safetensors", **settings),
                              "text": p.node("PreviewAny", source=["quantize", 1])})
        assert outcome.failed_node == "TPECQuantizeFP8" and words in outcome.error
