"""Compare Model Outputs: numbers, pictures and words, from one seed or several."""

import json

import prompts as p
import pytest
import torch
from comfy_server import ComfyServer, Outcome
from safetensors import safe_open


def comparing(model: str, b: list, **more: object) -> dict[str, dict]:
    """Nodes `a` (the stock loader), `compare`, and what they need; `more` are inputs of the node."""
    nodes = p.sampling(["a", 0], "unused", first=1)
    del nodes["sampler"], nodes["keep"]
    return {**nodes, "a": p.node("UNETLoader", unet_name=model, weight_dtype="default"),
            "compare": p.node("TPECCompare", model_a=["a", 0], model_b=b, positive=["positive", 0],
                              negative=["negative", 0], latent_image=["latent", 0], seed=3, steps=4, cfg=3.0,
                              sampler_name="euler", scheduler="simple", **more),
            "plot": p.node("PreviewImage", images=["compare", 2])}


def rounded(model: str, method: str, name: str) -> dict[str, dict]:
    """Node `name`: the model as it is after quantizing with `method`."""
    nodes = p.quantizing(f"diffusion_models/{model}", method=method)
    renamed = {"load": f"load {name}", "quantize": f"quantize {name}"}
    nodes = json.loads(json.dumps({renamed[key]: value for key, value in nodes.items()}))
    nodes[renamed["quantize"]]["inputs"]["checkpoint"] = [renamed["load"], 0]
    return {**nodes, name: p.node("TPECLoadScaledFP8", quantized=[renamed["quantize"], 0])}


@pytest.fixture(scope="module")
def pictures(server: ComfyServer, tinyflux: str, figures) -> Outcome:
    """Two seeds with a VAE and a reference."""
    outcome = server.succeed({
        **comparing(tinyflux, ["b", 0], vae=["vae", 0], reference=["plain", 0], seeds=2),
        **rounded(tinyflux, "tpec", "b"), **rounded(tinyflux, "nearest", "plain"),
        "vae": p.node("TestLinearVAE", filename=p.CONDITIONING),
        "pictures": p.node("PreviewImage", images=["compare", 4]),
        "keep a": p.node("SaveLatent", samples=["compare", 5], filename_prefix="compare_a"),
        "keep b": p.node("SaveLatent", samples=["compare", 6], filename_prefix="compare_b")})
    figures.append("Compare: " + outcome.text("compare").replace("\n", " "))
    return outcome


def test_prompts_of_before_work_and_equal_models_are_equal(server: ComfyServer, tinyflux: str):
    same = server.succeed(comparing(tinyflux, ["a", 0]))
    verdict, numbers, _ = same.text("compare").splitlines()
    assert verdict == "No visible difference."
    # On a GPU two samplings with one model differ a little.
    assert not server.cpu or "0.000 %" in numbers and "inf dB" in numbers
    assert same.outputs["plot"]["images"]


def test_one_row_of_pictures_per_seed_judged_in_pixels(server, shared_models, pictures: Outcome):
    assert len(pictures.outputs["pictures"]["images"]) == 2
    a, b = (p.image(latents(server, pictures, key), shared_models) for key in ("keep a", "keep b"))
    each = [p.psnr(b[index], a[index], 1.0) for index in range(2)]
    lines = pictures.text("compare").splitlines()
    assert lines[1] == f"PSNR {sum(each) / 2:.1f} dB in pixels over 2 pictures, the lowest {min(each):.1f} dB."


def test_latents_are_those_of_the_sampler(server: ComfyServer, tinyflux: str, pictures: Outcome):
    (second,) = (server.succeed({**p.stock_loader(tinyflux),
                                 **p.sampling(["model", 0], "compare_4", seed=4, steps=4, first=1)}),)
    assert torch.equal(latents(server, pictures, "keep a")[1:], latents(server, second, "keep"))


def test_reference_and_numbers_are_in_the_summary(server: ComfyServer, pictures: Outcome):
    a, b = latents(server, pictures, "keep a"), latents(server, pictures, "keep b")
    error = sum(((b[index] - a[index]).norm() / a[index].norm()).item() for index in range(2)) / 2
    text = pictures.text("compare")
    assert f"B is {100 * error:.3f} % away from A" in text
    assert "The reference is " in text and "seed 3 and 1 more" in text


def test_pictures_without_a_vae_say_what_is_missing(server: ComfyServer, tinyflux: str):
    # With another seed, as a comparison in ComfyUI's cache says it to the front end alone.
    nodes = comparing(tinyflux, ["a", 0])
    nodes["compare"]["inputs"]["seed"] = 77
    outcome = server.run({**nodes, "show": p.node("PreviewImage", images=["compare", 4])})
    assert "connect a VAE" in outcome.error


def latents(server: ComfyServer, outcome: Outcome, key: str) -> torch.Tensor:
    file = outcome.outputs[key]["latents"][0]
    with safe_open(server.output / file["subfolder"] / file["filename"], "pt") as stored:
        return stored.get_tensor("latent_tensor").float()
