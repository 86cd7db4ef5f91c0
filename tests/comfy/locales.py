"""The texts of the pack's nodes as ComfyUI's locale files hold them.

`python tests/comfy/locales.py` starts ComfyUI and writes locales/en/nodeDefs.json from the nodes' schemas, then the
other languages from that and translations/LANGUAGE.json: English texts and their translations. What has none stays
out, and the front end shows it in English; tests/test_locales.py names it, and what no longer stands in the schemas.
"""

import json
import sys
import tempfile
from pathlib import Path

from comfy_server import REPOSITORY, ComfyServer, find_comfy, find_python

LOCALES = REPOSITORY / "locales"
ENGLISH = LOCALES / "en" / "nodeDefs.json"
TRANSLATIONS = Path(__file__).with_name("translations")


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


def translated(texts: object, table: dict[str, str]) -> object:
    """The same structure with every text in another language; texts without a translation are left out."""
    if isinstance(texts, str):
        return table.get(texts)
    parts = {key: translated(value, table) for key, value in texts.items()}
    return {key: value for key, value in parts.items() if value is not None}


def write_english() -> None:
    """From the nodes' schemas."""
    comfy = find_comfy()
    python = comfy and find_python(comfy)
    if not python:
        sys.exit("No ComfyUI with its Python was found: set COMFYUI_PATH and COMFYUI_PYTHON.")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(comfy, python, Path(folder)) as server:
        texts = {name: locale(facts) for name, facts in pack_nodes(server).items()}
        if not texts:
            sys.exit(f"The pack did not load:\n{server.log()[-2000:]}")
    _put(ENGLISH, texts)


def write_others() -> None:
    """From the English texts and the translations."""
    english = json.loads(ENGLISH.read_text("utf-8"))
    for path in sorted(TRANSLATIONS.glob("*.json")):
        table = json.loads(path.read_text("utf-8"))
        _put(LOCALES / path.stem / "nodeDefs.json", translated(english, table))
        _put(LOCALES / path.stem / "main.json", json.loads((LOCALES / "en" / "main.json").read_text("utf-8")))


def _put(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    write_english()
    write_others()
