"""Models in diffusers layout are read as ComfyUI converts them, bit for bit."""

import json
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent / "read_diffusers.py"
CLASSES = {"Flux", "FluxSchnell", "SD3", "ZImage", "AuraFlow", "PixArtAlpha", "PixArtSigma", "SD15",
           "SD15_instructpix2pix", "SD20", "SD21UnclipL", "SD21UnclipH", "LotusD", "SDXL", "SDXL_instructpix2pix",
           "SDXLRefiner", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"}


def test_every_tensor_is_what_comfyui_makes_of_it(comfy_install: tuple[Path, str], tmp_path: Path) -> None:
    path, python = comfy_install
    done = subprocess.run([python, "-W", "ignore", SCRIPT, path, tmp_path], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert {answer["class"] for answer in answers} == CLASSES
    for answer in answers:
        assert answer["tensors"] > 30 and not answer["wrong"] and answer["shapes"], answer
        # The table and ComfyUI's own classes agree on what they find in the view.
        assert answer["class"] in answer["family"] and not answer["notes"] and answer["layers"] > 10, answer
        assert "diffusers layout" in answer["view"][0]
