"""The example workflows, described node by node.

`python tests/comfy/templates.py` starts ComfyUI, asks it for the nodes' inputs and writes example_workflows/*.json and
subgraphs/*.json. New inputs of a node get their defaults; test_templates.py holds the files against the nodes.
"""

import json
import re
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from comfy_server import REPOSITORY, ComfyServer, find_comfy, find_python

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"MarkdownNote", "Note"}
#: Where ComfyUI's own templates take the parts that Flux needs beside the model.
_PARTS = "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main"
_VAE = "https://huggingface.co/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors"
_NEEDS = f"""

Besides the model it needs, as every Flux workflow does:
- [clip_l.safetensors]({_PARTS}/clip_l.safetensors) and [t5xxl_fp16.safetensors]({_PARTS}/t5xxl_fp16.safetensors) in
  `models/text_encoders`
- [ae.safetensors]({_VAE}) in `models/vae`

For another model exchange the loaders for those that you use with it."""


@dataclass(frozen=True)
class Box:
    """A node: its type, place and size, values of widgets, and links as input: (key of another node, its output)."""

    kind: str
    at: tuple[int, int]
    size: tuple[int, int]
    values: dict[str, object] = field(default_factory=dict)
    links: dict[str, tuple[str, int]] = field(default_factory=dict)
    title: str = ""


def note(text: str, at: tuple[int, int], size: tuple[int, int]) -> Box:
    """Markdown; lines within a paragraph are joined, because the front end keeps every line break."""
    joined = re.sub(r"(?<!\n)\n(?!\n|- |#|\d+\. ) *", " ", text.strip())
    return Box("MarkdownNote", at, size, {"": joined}, title="How to")


def load(at: tuple[int, int]) -> Box:
    return Box("TPECLoadCheckpoint", at, (400, 250), {"checkpoint": ""})


def quantize(at: tuple[int, int], calibration: str = "", **values: object) -> Box:
    links = {"checkpoint": ("load", 0)} | ({"calibration": (calibration, 0)} if calibration else {})
    return Box("TPECQuantizeFP8", at, (400, 420), values, links)


def save(at: tuple[int, int], name: str = "my_model_fp8_scaled") -> Box:
    return Box("TPECSaveScaledFP8", at, (400, 230), {"filename": name}, {"quantized": ("quantize", 0)})


def report(at: tuple[int, int], size: tuple[int, int] = (820, 500)) -> dict[str, Box]:
    return {"report": Box("TPECReport", at, (400, 230), {}, {"quantized": ("quantize", 0)}),
            "plot": Box("PreviewImage", (at[0], at[1] + 280), size, {}, {"images": ("report", 0)}, "Layers")}


def flux_inputs(x: int, y: int) -> dict[str, Box]:
    """Model, text encoders, conditioning and latent for Flux, in two columns."""
    prompt = "a lighthouse on a cliff at dusk, long exposure, waves, warm light in one window"
    return {
        "model": Box("UNETLoader", (x, y), (400, 120), {"unet_name": ""}),
        "clip": Box("DualCLIPLoader", (x, y + 180), (400, 160), {"clip_name1": "", "clip_name2": "", "type": "flux"}),
        "latent": Box("EmptySD3LatentImage", (x, y + 400), (400, 150), {"width": 1024, "height": 1024}),
        "positive": Box("CLIPTextEncode", (x + 460, y), (400, 200), {"text": prompt}, {"clip": ("clip", 0)}),
        "guided": Box("FluxGuidance", (x + 460, y + 260), (400, 100), {"guidance": 3.5},
                      {"conditioning": ("positive", 0)}),
        "negative": Box("ConditioningZeroOut", (x + 460, y + 420), (400, 80), {}, {"conditioning": ("positive", 0)}),
    }


SAMPLED = {"positive": ("guided", 0), "negative": ("negative", 0), "latent_image": ("latent", 0)}


def first() -> dict[str, Box]:
    return {
        "note": note("""
## Half the size in three nodes

1. Choose the **bf16 or fp16 original** of a model. The node says what it is and what will become of it.
2. Press Run. The model is sampled a little first, without a prompt, to see what matters to it.
3. The file is saved among your models. Press **R** and pick it in *Load Diffusion Model*.

Change nothing else: the defaults load in every ComfyUI since 2024.

With prompts of your own the errors get smaller still: see the template *Best quality with calibration*.
""", (0, 0), (360, 330)),
        "load": load((420, 0)), "quantize": quantize((880, 0)), "save": save((1340, 0)),
    }


def same_run() -> dict[str, Box]:
    return {
        "note": note("""
## Quantize, and use the file in the same run

**model_name** of *Save Scaled FP8* goes straight into the stock loader's file name, although the file is not there yet
when you press Run. Choose the model, the text encoders and the VAE, then Run. The second run finds the file and only
samples.
""" + _NEEDS, (0, 0), (360, 460)),
        "load": load((420, 0)), "quantize": quantize((420, 310)), "save": save((420, 790)),
        "model": Box("UNETLoader", (880, 0), (400, 120), {}, {"unet_name": ("save", 0)}),
        **{key: box for key, box in flux_inputs(880, 0).items() if key != "model"},
        "sampler": Box("KSampler", (1800, 0), (340, 480), {"steps": 20, "cfg": 1.0, "scheduler": "simple"},
                       {"model": ("model", 0), **SAMPLED}),
        "vae": Box("VAELoader", (1800, 540), (340, 100), {"vae_name": ""}),
        "decode": Box("VAEDecode", (2200, 0), (240, 80), {}, {"samples": ("sampler", 0), "vae": ("vae", 0)}),
        "show": Box("PreviewImage", (2200, 140), (460, 500), {}, {"images": ("decode", 0)}),
    }


def best() -> dict[str, Box]:
    return {
        "note": note("""
## Best quality: let the model show what matters

*TPEC Calibrate* samples a few pictures with the **original** model and learns what its layers really see. Quantizing
with that puts the errors where the model does not look: the error falls to less than half of plain FP8.

- Choose the **same bf16 original** in both loaders, and the text encoders.
- Enter **prompts** of the kind you paint, one per line, or leave it empty for a varied list.
- **preset**: `good` is good, `best` takes longer. It takes as long as painting that many pictures.
- The statistics are kept in `output/tpec_calibration`, for other settings or for the command line.
""" + _NEEDS, (0, 0), (360, 560)),
        "model": Box("UNETLoader", (420, 0), (400, 120), {"unet_name": ""}),
        "clip": Box("DualCLIPLoader", (420, 180), (400, 160), {"clip_name1": "", "clip_name2": "", "type": "flux"}),
        "load": load((420, 400)),
        "calibrate": Box("TPECCalibrate", (880, 0), (420, 640), {"steps": 20, "cfg": 1.0, "preset": "good"},
                         {"model": ("model", 0), "clip": ("clip", 0)}),
        "keep": Box("TPECSaveCalibration", (880, 700), (420, 180), {}, {"calibration": ("calibrate", 0)}),
        "quantize": quantize((1360, 0), "calibrate"), "save": save((1360, 480)),
        **report((1820, 0)),
    }


def lora() -> dict[str, Box]:
    return {
        "note": note("""
## A model with its LoRAs as one FP8 file

1. Choose the **bf16 or fp16 original** and a LoRA. Add more *Load LoRA* nodes or a merge if you like.
2. Press Run. The LoRA is baked in at full precision, layer by layer, and rounded together with the model.
3. The file is saved among your models. Press **R** and pick it in *Load Diffusion Model*, without the LoRA.

For clearly smaller errors still, give the patched model to *TPEC Calibrate* as well.
""", (0, 0), (360, 330)),
        "model": Box("UNETLoader", (420, 0), (400, 120), {"unet_name": ""}),
        "lora": Box("LoraLoaderModelOnly", (420, 180), (400, 140), {"lora_name": ""}, {"model": ("model", 0)}),
        "load": Box("TPECModelSource", (420, 380), (400, 200), {}, {"model": ("lora", 0)}),
        "quantize": quantize((880, 0)), "save": save((1340, 0), "my_model_with_lora_fp8_scaled"),
    }


def text_encoder() -> dict[str, Box]:
    return {
        "note": note(f"""
## Quantize a text encoder

T5-XXL is as large as many a diffusion model. Choose its bf16 or fp16 file
([t5xxl_fp16.safetensors]({_PARTS}/t5xxl_fp16.safetensors), in `models/text_encoders`) in **both** loaders and
press Run.

The list of prompts is a good mix; add lines of the kind you write. CLIP-L and CLIP-G are small: leave them in fp16.

Afterwards press **R** and pick the new file in *DualCLIPLoader* or *Load CLIP*.
""", (0, 0), (360, 360)),
        "clip": Box("CLIPLoader", (420, 0), (400, 140), {"clip_name": "", "type": "chroma"}),
        "calibrate": Box("TPECCalibrateText", (420, 200), (400, 460), {}, {"clip": ("clip", 0)}),
        "load": load((880, 0)), "quantize": quantize((1340, 0), "calibrate"),
        "save": save((1800, 0), "t5xxl_fp8_scaled"),
    }


def compare() -> dict[str, Box]:
    return {
        "note": note("""
## Before and after

Quantizes the model, paints the same pictures with the original and with the result, and shows both side by side with
their difference. *Plain FP8* is the same model with ordinary rounding, for reference.

Choose the **same bf16 original** in both model loaders. Nothing is saved to your models: results stay in ComfyUI's temp
folder. Add *TPEC Calibrate* (see *Best quality with calibration*) to see what calibrating gains.
""" + _NEEDS, (0, 0), (360, 540)),
        "load": load((420, 0)), "quantize": quantize((420, 310)),
        "b": Box("TPECLoadScaledFP8", (420, 790), (400, 100), {}, {"quantized": ("quantize", 0)}, "TPEC"),
        "plain": quantize((880, 310), method="nearest"),
        "reference": Box("TPECLoadScaledFP8", (880, 790), (400, 100), {}, {"quantized": ("plain", 0)}, "Plain FP8"),
        **flux_inputs(1340, 0),
        "vae": Box("VAELoader", (1340, 610), (400, 100), {"vae_name": ""}),
        "compare": Box("TPECCompare", (2260, 0), (420, 640), {"seeds": 4, "steps": 20},
                       {"model_a": ("model", 0), "model_b": ("b", 0), "reference": ("reference", 0), "vae": ("vae", 0),
                        **SAMPLED}),
        "pictures": Box("PreviewImage", (2740, 0), (760, 420), {}, {"images": ("compare", 4)},
                        "Before, after, difference"),
        "plot": Box("PreviewImage", (2740, 480), (760, 420), {}, {"images": ("compare", 2)}, "Over the steps"),
    }


TEMPLATES = {
    "Quantize a diffusion model to FP8": first,
    "Quantize and use in one run": same_run,
    "Best quality with calibration": best,
    "Quantize a model with its LoRAs": lora,
    "Quantize a text encoder": text_encoder,
    "Compare before and after": compare,
}


def widget_inputs(facts: dict) -> Iterator[tuple[str, object, dict]]:
    """Name, default and options of the inputs that are widgets, in the front end's order.

    Seeds have a second widget for what follows a run; it comes as 'NAME after'.
    """
    for group in ("required", "optional"):
        for name, (kind, *rest) in facts["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            if isinstance(kind, list) or kind in WIDGETS:
                choices = kind if isinstance(kind, list) else options.get("options", [])
                yield name, options.get("default", choices[0] if choices else ""), options
                if name in ("seed", "noise_seed") or options.get("control_after_generate"):
                    yield f"{name} after", "fixed", {}


def make(boxes: dict[str, Box], info: dict) -> dict:
    """A workflow file's content."""
    ids = {key: index + 1 for index, key in enumerate(boxes)}
    workflow = {"last_node_id": len(ids), "last_link_id": 0, "nodes": [], "links": [], "groups": [], "config": {},
                "extra": {}, "version": 0.4}
    for key, box in boxes.items():
        workflow["nodes"].append(_node(ids[key], box, info))
    by_id = {node["id"]: node for node in workflow["nodes"]}
    for key, box in boxes.items():
        for name, (source, slot) in box.links.items():
            _link(workflow, by_id[ids[source]], slot, by_id[ids[key]], name)
    return workflow


def _node(number: int, box: Box, info: dict) -> dict:
    node = {"id": number, "type": box.kind, "pos": list(box.at), "size": list(box.size), "flags": {},
            "order": number - 1, "mode": 0, "inputs": [], "outputs": [], "properties": {}}
    if box.title:
        node["title"] = box.title
    if box.kind in NOTES:
        return node | {"widgets_values": list(box.values.values())}
    facts = info[box.kind]
    ours = box.kind.startswith("TPEC")
    node["properties"] = {"cnr_id": "tpec-fp8" if ours else "comfy-core", "Node name for S&R": box.kind}
    widgets = list(widget_inputs(facts))
    for group in ("required", "optional"):
        for name, (kind, *_) in facts["input"].get(group, {}).items():
            if name not in [widget for widget, _, _ in widgets]:
                node["inputs"].append({"name": name, "type": kind, "link": None}
                                      | ({"shape": 7} if group == "optional" else {}))
            elif name in box.links:
                node["inputs"].append({"name": name, "type": "COMBO", "widget": {"name": name}, "link": None})
    node["outputs"] = [{"name": name, "type": kind, "links": [], "slot_index": index} for index, (name, kind) in
                       enumerate(zip(facts["output_name"], facts["output"], strict=True))]
    values = [box.values.get(name, default) for name, default, _ in widgets]
    return node | {"widgets_values": ["" if name in box.links else value
                                      for (name, _, _), value in zip(widgets, values, strict=True)]}


def _link(workflow: dict, source: dict, slot: int, target: dict, name: str) -> None:
    number = workflow["last_link_id"] = workflow["last_link_id"] + 1
    place = next(index for index, item in enumerate(target["inputs"]) if item["name"] == name)
    kind = source["outputs"][slot]["type"]
    source["outputs"][slot]["links"].append(number)
    target["inputs"][place]["link"] = number
    workflow["links"].append([number, source["id"], slot, target["id"], place, kind])


def blueprint(info: dict) -> dict:
    """The three nodes of the first workflow as one, with the choice of the model and the name of the result outside."""
    boxes = {key: box for key, box in first().items() if key != "note"}
    inside = make(boxes, info)
    shown = [("1", "checkpoint"), ("3", "filename"), ("3", "folder"), ("3", "if_exists")]
    key = str(uuid.uuid5(uuid.NAMESPACE_URL, "tpec-fp8/quantize-a-model"))
    outputs = [("model_name", "COMBO", 3, 0), ("report", "STRING", 2, 1)]
    links = [dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
             for link in inside["links"]]
    for index, (_, kind, node, slot) in enumerate(outputs):
        number = len(links) + 1
        links.append({"id": number, "origin_id": node, "origin_slot": slot, "target_id": -20, "target_slot": index,
                      "type": kind})
        inside["nodes"][node - 1]["outputs"][slot]["links"].append(number)
    definition = {
        "id": key, "version": 1, "revision": 0, "config": {}, "name": "Quantize a model to FP8", "category": "TPEC FP8",
        "description": "Writes a bf16 or fp16 model as scaled FP8, half the size, among ComfyUI's models.",
        "state": {"lastGroupId": 0, "lastNodeId": 3, "lastLinkId": len(links), "lastRerouteId": 0},
        "inputNode": {"id": -10, "bounding": [220, 0, 120, 60]},
        "outputNode": {"id": -20, "bounding": [1800, 0, 120, 100]}, "inputs": [],
        "outputs": [{"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"tpec-fp8/{name}")), "name": name, "type": kind,
                     "linkIds": [link["id"] for link in links
                                 if (link["target_id"], link["target_slot"]) == (-20, index)], "pos": [1820, 20]}
                    for index, (name, kind, _, _) in enumerate(outputs)],
        "widgets": [], "nodes": inside["nodes"], "links": links, "groups": [], "extra": {},
    }
    host = {"id": 1, "type": key, "pos": [0, 0], "size": [400, 240], "flags": {}, "order": 0, "mode": 0, "inputs": [],
            "outputs": [{"name": name, "type": kind, "links": None} for name, kind, _, _ in outputs],
            "title": "Quantize a model to FP8", "widgets_values": [],
            "properties": {"proxyWidgets": [list(pair) for pair in shown], "cnr_id": "tpec-fp8"}}
    return {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [host], "links": [], "version": 0.4,
            "definitions": {"subgraphs": [definition]}, "extra": {}}


def write() -> None:
    comfy = find_comfy()
    python = comfy and find_python(comfy)
    if not python:
        sys.exit("No ComfyUI with its Python was found: set COMFYUI_PATH and COMFYUI_PYTHON.")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(comfy, python, Path(folder)) as server:
        info = server.get("/object_info")
    for name, boxes in TEMPLATES.items():
        _put(REPOSITORY / "example_workflows" / f"{name}.json", make(boxes(), info))
    _put(REPOSITORY / "subgraphs" / "Quantize a model to FP8.json", blueprint(info))


def _put(path: Path, content: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    write()
