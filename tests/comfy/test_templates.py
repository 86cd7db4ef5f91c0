"""The example workflows fit the nodes, and the first one runs."""

import json
import re
import subprocess
from pathlib import Path

import models
import prompts as p
import pytest
from comfy_server import PACK, REPOSITORY, ComfyServer, find_comfy, find_python
from templates import NOTES, TEMPLATES, blueprint, make, widget_inputs

FOLDER = REPOSITORY / "example_workflows"
LINK = re.compile(r"https://huggingface\.co/[^\s\"\\)]+\.safetensors(?![\w?])")


def stock_templates() -> Path | None:
    """The folder of ComfyUI's own templates."""
    comfy = find_comfy()
    python = comfy and find_python(comfy)
    if not python:
        return None
    ask = "import comfyui_workflow_templates_json as found; print(found.__path__[0])"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    return Path(done.stdout.strip()) if done.returncode == 0 else None


def to_prompt(workflow: dict, info: dict) -> dict[str, dict]:
    """The API prompt that the front end makes of a workflow without subgraphs."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for item in workflow["nodes"]:
        if item["type"] in NOTES:
            continue
        names = [name for name, _, _ in widget_inputs(info[item["type"]])]
        values = item.get("widgets_values", [])
        assert len(names) == len(values), (item["type"], names, values)
        inputs = {name: value for name, value in zip(names, values, strict=True) if not name.endswith(" after")}
        inputs |= {slot["name"]: sources[slot["link"]] for slot in item["inputs"] if slot["link"] is not None}
        prompt[str(item["id"])] = p.node(item["type"], **inputs)
    return prompt


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_workflow_fits_the_nodes(server: ComfyServer, path):
    workflow, info = json.loads(path.read_text("utf-8")), server.get("/object_info")
    prompt = to_prompt(workflow, info)
    for item in prompt.values():
        required = info[item["class_type"]]["input"]["required"]
        assert set(required) <= set(item["inputs"]), item
    assert workflow == make(TEMPLATES[path.stem](), info), "run tests/comfy/templates.py"
    by_id = {item["id"]: item for item in workflow["nodes"]}
    for _, source, out, target, slot, kind in workflow["links"]:
        assert by_id[source]["outputs"][out]["type"] == kind
        assert by_id[target]["inputs"][slot]["type"] in (kind, "*")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_no_template_names_a_file(path):
    """A file that is not there is a red mark on opening; every choice of a file is blank."""
    for item in json.loads(path.read_text("utf-8"))["nodes"]:
        if item["type"] not in NOTES:
            files = [value for value in item["widgets_values"] if str(value).endswith((".safetensors", ".sft"))]
            assert files == []
            assert item["properties"]["cnr_id"] == ("tpec-fp8" if item["type"].startswith("TPEC") else "comfy-core")


def test_links_are_those_of_the_stock_templates():
    """Files that a template needs come from where ComfyUI's own templates take them; nothing is fetched."""
    links = {link for path in FOLDER.glob("*.json") for link in LINK.findall(path.read_text("utf-8"))}
    assert {link.rpartition("/")[2] for link in links} == {
        "clip_l.safetensors", "t5xxl_fp16.safetensors", "ae.safetensors"}
    stock = stock_templates()
    if stock is None:
        pytest.skip("no ComfyUI whose Python has comfyui-workflow-templates-json")
    theirs = {link for path in stock.rglob("*.json") for link in LINK.findall(path.read_text("utf-8"))}
    assert links <= theirs


def test_blueprint_is_served_and_fits_the_nodes(server: ComfyServer):
    served = [entry for entry in server.get("/global_subgraphs").values() if entry["info"]["node_pack"].endswith(PACK)]
    assert [entry["name"] for entry in served] == ["Quantize a model to FP8"]
    stored = json.loads((REPOSITORY / "subgraphs" / "Quantize a model to FP8.json").read_text("utf-8"))
    assert stored == blueprint(server.get("/object_info"))


def test_first_workflow_runs(server: ComfyServer):
    models.save(models.flux(hidden=128), server.models / "diffusion_models" / "template.safetensors")
    workflow = json.loads((FOLDER / "Quantize a diffusion model to FP8.json").read_text("utf-8"))
    prompt = to_prompt(workflow, server.get("/object_info"))
    (load,) = [item for item in prompt.values() if item["class_type"] == "TPECLoadCheckpoint"]
    load["inputs"]["checkpoint"] = "diffusion_models/template.safetensors"
    server.succeed(prompt)
    assert (server.models / "diffusion_models" / "my_model_fp8_scaled.safetensors").is_file()
