"""Calibrating from a text encoder and prompts: one node, and what is not connected is chosen by it."""

import json

import models
import prompts as p
import pytest
from comfy_server import ComfyServer
from safetensors import safe_open
from test_calibrate_nodes import calibrating, velocity_ratio

from tpec.statistics.storage import open_calibration


@pytest.fixture(scope="module")
def captions(shared_models) -> list[str]:
    with safe_open(shared_models / p.CONDITIONING, "pt") as file:
        return json.loads(file.metadata()["captions"])


def prompted(model: str, width: int = 256, **inputs: object) -> dict[str, dict]:
    """Node `calibrate` with a text encoder instead of conditionings; `width` 0 for no latent."""
    nodes = {**p.stock_loader(model), "clip": p.node("TestStoredClip", filename=p.CONDITIONING)}
    values = {"seed": 5, "steps": 1, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "runs": 1, **inputs}
    if width:
        nodes["latent"] = p.node("EmptySD3LatentImage", width=width, height=width, batch_size=1)
        values["latent_image"] = ["latent", 0]
    nodes["calibrate"] = p.node("TPECCalibrate", model=["model", 0], clip=["clip", 0], **values)
    return {**nodes, "show": p.node("PreviewAny", source=["calibrate", 1])}


def encoded(server: ComfyServer, start: int) -> list[str]:
    """The prompts that the text encoder was given since then."""
    return [line.split("TEST encoded '")[1].rstrip("'") for line in server.log()[start:].splitlines()
            if "TEST encoded '" in line]


def test_one_node_with_prompts_is_several_nodes_with_conditionings(server: ComfyServer, tinyflux: str, captions):
    """The same prompts, one after the other with the next seed, each added to the one before.

    The first of each is added to another calibration, too: alone, a few prompts have samplings without any beside them.
    """
    def keeping(source: str, name: str) -> dict[str, dict]:
        return {"store": p.node("TPECSaveCalibration", calibration=[source, 0], name=name, if_exists="overwrite")}

    one = prompted(tinyflux, 64, prompts="\n".join(captions[32:35]), steps=2)
    one["earlier"] = p.node("TPECCalibrate", **{**one["calibrate"]["inputs"], "prompts": captions[40]})
    one["calibrate"]["inputs"]["calibration"] = ["earlier", 0]
    server.succeed({**one, **keeping("calibrate", "one_node")})
    nodes = {**prompted(tinyflux, 64, steps=2), "earlier": one["earlier"]}
    common = nodes.pop("calibrate")["inputs"]
    del nodes["show"], common["clip"]
    for at in range(3):
        for side in ("positive", "negative"):
            nodes[f"{side}{at}"] = p.node("TestStoredConditioning", filename=p.CONDITIONING, first=32 + at, count=1,
                                          empty=side == "negative")
        nodes[f"c{at}"] = p.node("TPECCalibrate", **{
            **common, "seed": 5 + at, "positive": [f"positive{at}", 0], "negative": [f"negative{at}", 0],
            "calibration": [f"c{at - 1}" if at else "earlier", 0]})
    server.succeed({**nodes, **keeping("c2", "several_nodes")})
    one, several = (open_calibration(server.output / "tpec_calibration" / f"{name}.safetensors")
                    for name in ("one_node", "several_nodes"))
    assert (one.runs, one.layers) == (several.runs, several.layers)
    for name in one.layers:
        a, b = one.stats(name), several.stats(name)
        assert a.tokens == b.tokens
        # Memory lies elsewhere in each run, so that MKL may sum in another order.
        assert (a.second_moment() - b.second_moment()).norm() < 1e-2 * b.second_moment().norm(), name


def test_few_prompts_have_samplings_without_a_prompt_beside_them(server: ComfyServer, tinyflux: str, captions):
    """With noise of their own, no guidance, and not in the statistics of modulation, which read real embeddings."""
    def tokens(calibration, layer: str) -> int:
        return calibration.stats(layer).tokens

    def collected(name: str, **inputs: object) -> tuple[str, object]:
        nodes = prompted(tinyflux, 64, **{"steps": 2, **inputs})
        outcome = server.succeed({**nodes, "store": p.node(
            "TPECSaveCalibration", calibration=["calibrate", 0], name=name, if_exists="overwrite")})
        return outcome.text("show"), open_calibration(server.output / "tpec_calibration" / f"{name}.safetensors")

    text, few = collected("few", prompts="\n".join(captions[:3]), runs=3)
    assert "also 3 times without a prompt" in text and "3 runs" in text
    # Three runs of two steps with both sides of the guidance, and three without: 4 x 4 tokens of picture.
    assert tokens(few, "double_blocks.0.img_attn.qkv") == (3 * 2 * 2 + 3 * 2) * 16
    assert tokens(few, "double_blocks.0.img_mod.lin") == 3 * 2 * 2
    text, many = collected("many", prompts="\n".join(captions[:16]), runs=16, steps=1)
    assert "without a prompt" not in text
    assert tokens(many, "double_blocks.0.img_attn.qkv") == 16 * 2 * 16


@pytest.mark.slow
def test_one_node_with_prompts_equals_stored_conditionings(server: ComfyServer, tinyflux: str, captions, figures):
    def saved(nodes: dict[str, dict], name: str) -> float:
        server.succeed({**nodes, **p.quantizing(f"diffusion_models/{tinyflux}", calibration=["calibrate", 0]),
                        **p.saving(name)}, 3000)
        return velocity_ratio(server.models / "diffusion_models" / f"{name}.safetensors")

    from_clip = saved(prompted(tinyflux, prompts="\n".join(captions[32:]), steps=8), "from_clip")
    stored = saved(calibrating(tinyflux, first=32, count=32, steps=8), "from_stored")
    figures.append(f"32 prompts: velocity error {from_clip:.3f} x from clip, {stored:.3f} x from stored conditionings")
    assert abs(from_clip - stored) < 0.02


def test_every_prompt_has_a_run_and_more_runs_take_them_again(server: ComfyServer, tinyflux: str, captions):
    start = len(server.log())
    three = server.succeed(prompted(tinyflux, 64, prompts="\n\n".join(captions[:3])))
    assert "3 runs" in three.text("show") and "with 3 prompts" in three.text("show")
    assert encoded(server, start) == ["", *captions[:3]]
    five = server.succeed(prompted(tinyflux, 64, prompts="\n".join(captions[:2]), runs=5))
    assert "5 runs" in five.text("show")


def test_own_list_and_own_size_are_taken_for_what_is_not_given(server: ComfyServer, tinyflux: str):
    start = len(server.log())
    outcome = server.succeed(prompted(tinyflux, 0, cfg=1.0), 580)
    assert "with 1 prompt\n" in outcome.text("show")
    assert "at the model's usual size, 1024 x 1024" in outcome.text("show")
    prompts = encoded(server, start)
    assert len(prompts) == 2 and prompts[0] == "" and len(prompts[1]) > 10


def test_what_is_connected_wins(server: ComfyServer, tinyflux: str):
    nodes = prompted(tinyflux, 64, prompts="never used", positive=["positive", 0], negative=["positive", 0])
    nodes["positive"] = p.node("TestStoredConditioning", filename=p.CONDITIONING, first=0, count=1, empty=False)
    start = len(server.log())
    outcome = server.succeed(nodes)
    assert encoded(server, start) == [] and "sampled with" not in outcome.text("show")
    del nodes["calibrate"]["inputs"]["negative"], nodes["calibrate"]["inputs"]["clip"]
    server.succeed(nodes)


def test_nothing_to_sample_is_one_sentence(server: ComfyServer, tinyflux: str):
    nodes = prompted(tinyflux, 64)
    del nodes["calibrate"]["inputs"]["clip"]
    outcome = server.run(nodes)
    assert outcome.failed_node == "TPECCalibrate" and "connect clip" in outcome.error


def test_presets_set_runs_steps_and_sensitivity(server: ComfyServer, tinyflux: str):
    start = len(server.log())
    outcome = server.succeed(prompted(tinyflux, 64, preset="quick", runs=1, steps=1, sensitivity=True))
    assert "8 runs" in outcome.text("show") and "gradients" not in outcome.text("show")
    assert len(set(encoded(server, start))) == 9
    best = server.succeed(prompted(tinyflux, 64, preset="best", runs=1, cfg=1.0), 580)
    assert "32 runs" in best.text("show") and "output gradients of" in best.text("show")


@pytest.mark.parametrize("how", ["scaled", "cast"])
def test_quantized_model_is_refused(server: ComfyServer, tinyflux: str, how: str):
    nodes = prompted(tinyflux, 64)
    if how == "scaled":
        nodes |= {**p.quantizing(f"diffusion_models/{tinyflux}", method="nearest"),
                  "model": p.node("TPECLoadScaledFP8", quantized=["quantize", 0])}
    else:
        nodes["model"]["inputs"]["weight_dtype"] = "fp8_e4m3fn"
    start = len(server.log())
    outcome = server.run(nodes)
    assert outcome.failed_node == "TPECCalibrate"
    assert "quantized already" in outcome.error and "load the original" in outcome.error
    assert encoded(server, start) == [], "refused before any work"


def test_quantized_text_encoder_is_refused(server: ComfyServer):
    models.save(models.t5xxl(), server.models / "text_encoders" / "t5_plain.safetensors")
    outcome = server.run({
        **p.quantizing("text_encoders/t5_plain.safetensors", method="nearest"), **p.saving("t5_scaled"),
        "clip": p.node("TestSmallTextEncoder", clip_name=["save", 0], type="chroma", part="t5xxl",
                       sizes=json.dumps(models.SMALL_T5)),
        "calibrate": p.node("TPECCalibrateText", clip=["clip", 0], prompts="a cat"),
        "show": p.node("PreviewAny", source=["calibrate", 1])})
    assert outcome.failed_node == "TPECCalibrateText" and "quantized already" in outcome.error
