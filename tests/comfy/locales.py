"""The texts of the pack's nodes as ComfyUI's locale files hold them.

`python tests/comfy/locales.py` starts ComfyUI and writes locales/en/nodeDefs.json from the nodes' schemas; the other
languages are held against it by tests/test_locales.py, which names what is missing or stale.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from comfy_server import REPOSITORY, ComfyServer, find_comfy, find_python

ENGLISH = REPOSITORY / "locales" / "en" / "nodeDefs.json"


def inputs(facts: dict) -> dict[str, list]:
    """A node's inputs by name, from its entry in /object_info."""
    return {**facts["input"]["required"], **facts["input"].get("optional", {})}


def pack_nodes(server: ComfyServer) -> dict[str, dict]:
    return {name: facts for name, facts in server.get("/object_info").items() if name.startswith("TPEC")}


def locale(facts: dict) -> dict:
    """A node's entry in nodeDefs.json."""
    entry = {"display_name": facts["display_name"], "description": facts["description"], "inputs": {}, "outputs": {}}
    for key, (_, *options) in inputs(facts).items():
        tooltip = options[0].get("tooltip") if options else None
        entry["inputs"][key] = {"name": key} | ({"tooltip": tooltip} if tooltip else {})
    tooltips = facts["output_tooltips"]
    for index, key in enumerate(facts["output_name"]):
        entry["outputs"][str(index)] = {"name": key} | ({"tooltip": tooltips[index]} if tooltips[index] else {})
    return entry


def write_english() -> None:
    comfy = find_comfy()
    python = comfy and find_python(comfy)
    if not python:
        sys.exit("No ComfyUI with its Python was found: set COMFYUI_PATH and COMFYUI_PYTHON.")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(comfy, python, Path(folder)) as server:
        texts = {name: locale(facts) for name, facts in pack_nodes(server).items()}
    ENGLISH.write_text(json.dumps(texts, indent=2) + os.linesep, "utf-8")


if __name__ == "__main__":
    write_english()
