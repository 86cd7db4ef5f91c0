"""Text encoders of full checkpoints through the nodes: quantized where they are named, and left out."""

import prompts as p
import pytest
from comfy_server import ComfyServer
from safetensors import safe_open
from safetensors.torch import save_file
from samples import t5xxl_shapes, weights

from tpec.command.demo import flux_shapes

PREFIXES = {"unet": "model.diffusion_model.", "t5xxl": "text_encoders.t5xxl.transformer.", "vae": "vae."}


@pytest.fixture(scope="module")
def full(server: ComfyServer) -> str:
    """A checkpoint in Flux layout with a thin T5-XXL and a piece of a VAE."""
    its = {"unet": flux_shapes(128, 1, 1), "t5xxl": t5xxl_shapes(), "vae": {"decoder.conv_in.weight": (8, 4, 3, 3)}}
    path = server.models / "checkpoints" / "parts_full.safetensors"
    save_file(weights({PREFIXES[part] + name: shape for part, names in its.items() for name, shape in names.items()}),
              path)
    return f"checkpoints/{path.name}"


@pytest.mark.parametrize(("wish", "fp8", "there", "folder"), [
    ({}, {"unet"}, {"unet", "t5xxl", "vae"}, "checkpoints"),
    ({"part": " t5xxl,"}, {"unet", "t5xxl"}, {"unet", "t5xxl", "vae"}, "checkpoints"),
    ({"only_part": True}, {"unet"}, {"unet"}, "diffusion_models"),
    ({"part": "t5xxl", "only_part": True}, {"unet", "t5xxl"}, {"unet", "t5xxl"}, "checkpoints")])
def test_parts(server: ComfyServer, full: str, wish: dict[str, object], fp8: set[str], there: set[str],
               folder: str) -> None:
    name = f"parts_{len(fp8)}_{len(there)}"
    server.succeed({**p.quantizing(full, method="nearest", **wish), **p.saving(name)})
    with safe_open(server.models / folder / f"{name}.safetensors", "pt") as result:
        found = {name: result.get_slice(name) for name in result.keys()}
    assert {part for part, prefix in PREFIXES.items() if any(name.startswith(prefix) for name in found)} == there
    assert {part for part, prefix in PREFIXES.items() if any(
        name.startswith(prefix) and name.endswith(".weight") and its.get_dtype() == "F8_E4M3"
        for name, its in found.items())} == fp8


def test_a_part_that_is_not_there_is_refused_in_a_sentence(server: ComfyServer, full: str) -> None:
    outcome = server.run({**p.quantizing(full, method="nearest", part="clip_g"),
                          **p.saving("none")})
    assert "has no part 'clip_g': it can be one of t5xxl" in (outcome.error or "")
