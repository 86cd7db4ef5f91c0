"""T5-XXL files load through ComfyUI's text encoder loader; CLIP-L is refused."""

import json

import models
import prompts as p
import pytest
import torch
from comfy_server import ComfyServer, PromptRefused
from safetensors.torch import load_file
from test_main_job import dequantized

from tpec.statistics.storage import open_calibration


def encoding(name: object, keep: str) -> dict[str, dict]:
    return {
        "clip": p.node("TestSmallTextEncoder", clip_name=name, type="chroma", part="t5xxl",
                       sizes=json.dumps(models.SMALL_T5)),
        "encode": p.node("CLIPTextEncode", clip=["clip", 0], text="a red square beside a blue circle"),
        "cond": p.node("TestSaveConditioning", conditioning=["encode", 0], filename=keep),
    }


@pytest.fixture(scope="module")
def t5(server: ComfyServer) -> str:
    # On a GPU ComfyUI computes in the format of the file's norms, and 24 layers of random weights multiply the rounding
    # of bf16 by a hundred: in float32 the file and its dequantized weights give the same.
    tensors = {name: tensor.float() for name, tensor in models.t5xxl(decoder=True).items()}
    models.save(tensors, server.models / "text_encoders" / "t5.safetensors")
    return "t5.safetensors"


@pytest.fixture(scope="module")
def clip_l(server: ComfyServer) -> str:
    models.save(models.clip_l(), server.models / "text_encoders" / "clip_l.safetensors")
    return "clip_l.safetensors"


@pytest.mark.parametrize(("form", "embeddings"), [("universal", False), ("scaled_fp8", False), ("comfy_quant", True)])
def test_t5xxl_encodes_as_its_weights_mean(server: ComfyServer, t5: str, form: str, embeddings: bool):
    folder = server.models / "text_encoders"
    server.succeed({
        **p.quantizing(f"text_encoders/{t5}", format=form, method="nearest", embeddings=embeddings),
        **p.saving(f"t5_{form}"), **encoding(["save", 0], f"t5_{form}.safetensors")})
    raw = load_file(folder / f"t5_{form}.safetensors")
    assert (raw["shared.weight"].dtype == torch.float8_e4m3fn) is embeddings
    assert ("shared.weight_scale" in raw) is embeddings
    models.save(dequantized(folder / f"t5_{form}.safetensors"), folder / f"t5_{form}_exact.safetensors")
    server.succeed(encoding(f"t5_{form}_exact.safetensors", f"t5_{form}_exact.safetensors"))
    got, wanted = (load_file(server.output / f"{name}.safetensors")["cond"]
                   for name in (f"t5_{form}", f"t5_{form}_exact"))
    assert wanted.std() > 0.01
    assert torch.allclose(got, wanted, rtol=1e-2, atol=1e-2 * wanted.std().item())


def test_clip_l_is_refused_with_the_reason(server: ComfyServer, clip_l: str):
    with pytest.raises(PromptRefused, match="it is a CLIP text encoder, and ComfyUI ignores the FP8 scales"):
        server.run({**p.quantizing(f"text_encoders/{clip_l}"), **p.saving("clip_l_fp8")})


def test_text_calibration_names_layers_as_their_file_does(server: ComfyServer, clip_l: str):
    server.succeed({
        "clip": p.node("TestSmallTextEncoder", clip_name=clip_l, type="stable_diffusion", part="clip_l",
                       sizes=json.dumps(models.SMALL_CLIP_L)),
        "calibrate": p.node("TPECCalibrateText", clip=["clip", 0], prompts="a cat\n\na dog in the rain\n"),
        "store": p.node("TPECSaveCalibration", calibration=["calibrate", 0], name="clip_l", if_exists="overwrite")})
    calibration = open_calibration(server.output / "tpec_calibration" / "clip_l.safetensors").in_memory()
    assert calibration.runs == 2
    assert {f"{name}.weight" for name in calibration.layers} >= {
        name for name, tensor in models.clip_l().items() if ".layers." in name and tensor.ndim == 2}


def test_text_calibration_without_a_prompt_says_so(server: ComfyServer, clip_l: str):
    outcome = server.run({
        "clip": p.node("TestSmallTextEncoder", clip_name=clip_l, type="stable_diffusion", part="clip_l",
                       sizes=json.dumps(models.SMALL_CLIP_L)),
        "calibrate": p.node("TPECCalibrateText", clip=["clip", 0], prompts=" \n "),
        "show": p.node("PreviewAny", source=["calibrate", 1])})
    assert "no prompt" in outcome.error
