"""What workflows rely on: ids, names, inputs and outputs; and the files the front end asks for."""

import json
import urllib.parse

import pytest
from comfy_server import PACK, REPOSITORY, ComfyServer

from locales import inputs, locale, pack_nodes

SAMPLING = ["positive", "negative", "latent_image", "seed", "steps", "cfg", "sampler_name", "scheduler"]

#: id: (display name, inputs in order, output types)
NODES = {
    "TPECLoadCheckpoint": ("Load Checkpoint For Quantize", ["checkpoint", "family"], ["TPEC_CHECKPOINT", "STRING"]),
    "TPECModelSource": ("Model To Quantize", ["model"], ["TPEC_CHECKPOINT", "STRING"]),
    "TPECQuantizeFP8": ("TPEC Quantize FP8", [
        "checkpoint", "calibration", "method", "format", "matmul", "keep_distillation", "top_k", "num_iter", "include",
        "exclude", "device", "keep_nonfinite", "keep_quality", "like"], ["TPEC_QUANTIZED", "STRING"]),
    "TPECSaveScaledFP8": ("Save Scaled FP8", ["quantized", "filename", "folder", "if_exists"], ["COMBO", "STRING"]),
    "TPECLoadScaledFP8": ("Load Scaled FP8", ["quantized"], ["MODEL", "CLIP", "VAE"]),
    "TPECCalibrate": ("TPEC Calibrate", ["model", *SAMPLING, "runs", "calibration", "sensitivity", "clip", "prompts",
                                         "preset"], ["TPEC_CALIBRATION", "STRING"]),
    "TPECCalibrateText": ("TPEC Calibrate Text Encoder", ["clip", "prompts"], ["TPEC_CALIBRATION", "STRING"]),
    "TPECSaveCalibration": ("Save TPEC Calibration", ["calibration", "name", "if_exists"], ["STRING"]),
    "TPECLoadCalibration": ("Load TPEC Calibration", ["name"], ["TPEC_CALIBRATION", "STRING"]),
    "TPECReport": ("TPEC Quantization Report", ["quantized", "theme"], ["IMAGE", "STRING"]),
    "TPECCompare": ("Compare Model Outputs", ["model_a", "model_b", *SAMPLING, "vae", "reference", "seeds", "theme"],
                    ["FLOAT", "FLOAT", "IMAGE", "STRING", "IMAGE", "LATENT", "LATENT"]),
}


@pytest.fixture(scope="module")
def info(server: ComfyServer) -> dict[str, dict]:
    return pack_nodes(server)


def test_the_pack_loads_and_has_these_nodes(server: ComfyServer, info):
    assert not [line for line in server.log().splitlines() if "IMPORT FAILED" in line and PACK in line]
    assert set(info) == set(NODES)


@pytest.mark.parametrize("name", NODES)
def test_names_inputs_and_outputs(info, name: str):
    display, wanted, outputs = NODES[name]
    facts = info[name]
    assert facts["display_name"] == display
    assert set(inputs(facts)) == set(wanted)
    assert [key for key in wanted if key in facts["input"]["required"]] == facts["input_order"]["required"]
    assert facts["output"] == outputs


def test_widgets_of_earlier_workflows_keep_their_places(info):
    """Saved workflows hold the widgets' values in order, required ones first; new ones come behind them."""
    facts = info["TPECCalibrate"]["input"]
    widgets = [name for group in ("required", "optional") for name, (kind, *_) in facts[group].items()
               if isinstance(kind, list) or kind in ("INT", "FLOAT", "BOOLEAN", "COMBO", "STRING")]
    assert widgets == ["seed", "steps", "cfg", "sampler_name", "scheduler", "runs", "sensitivity", "prompts", "preset"]
    assert facts["optional"]["preset"][1]["default"] == "custom" and facts["optional"]["prompts"][1]["default"] == ""


def test_choices_of_the_contract(info):
    quantize = inputs(info["TPECQuantizeFP8"])
    assert quantize["method"][1]["options"] == ["tpec", "nearest"]
    assert quantize["format"][1]["options"] == ["universal", "comfy_quant", "scaled_fp8"]
    assert quantize["matmul"][1]["options"] == ["full_precision", "fp8", "auto"]
    assert quantize["keep_quality"][1]["default"] == 0 and quantize["like"][1]["default"] == "none"
    assert inputs(info["TPECSaveScaledFP8"])["if_exists"][1]["options"] == ["error", "number", "overwrite"]
    assert inputs(info["TPECCalibrate"])["preset"][1]["options"] == ["custom", "quick", "good", "best"]
    assert inputs(info["TPECLoadCheckpoint"])["family"][1]["default"] == "auto"


@pytest.mark.parametrize("name", NODES)
def test_help_page_is_served(server: ComfyServer, name: str):
    page = server.request(f"/extensions/{PACK}/docs/{name}.md").decode()
    assert page.startswith(f"# {NODES[name][0]}")


def test_help_pages_name_every_input_and_output(info):
    for name, facts in info.items():
        page = (REPOSITORY / "web" / "docs" / f"{name}.md").read_text("utf-8")
        missing = [key for key in [*inputs(facts), *facts["output_name"]] if f"**{key}**" not in page]
        assert missing == [], name


def test_script_is_served(server: ComfyServer):
    assert [path for path in server.get("/extensions") if f"/{PACK}/" in path] == [f"/extensions/{PACK}/tpec.js"]
    assert b"registerExtension" in server.request(f"/extensions/{PACK}/tpec.js")


def test_locale_says_what_the_nodes_say(server: ComfyServer, info):
    """locales/en is what translators start from; it must not drift from the schemas."""
    served = server.get("/i18n")["en"]["nodeDefs"]
    assert {name: text for name, text in served.items() if name.startswith("TPEC")} == {
        name: locale(facts) for name, facts in info.items()}


def test_templates_are_served_with_pictures(server: ComfyServer):
    templates = server.get("/api/workflow_templates").get(PACK, [])
    assert sorted(templates) == sorted(path.stem for path in (REPOSITORY / "example_workflows").glob("*.json"))
    assert templates
    for name in templates:
        at = f"/api/workflow_templates/{PACK}/{urllib.parse.quote(name)}"
        assert json.loads(server.request(f"{at}.json"))["nodes"]
        assert server.request(f"{at}.jpg")[:3] == b"\xff\xd8\xff"
