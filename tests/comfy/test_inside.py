"""Parts of the nodes in ComfyUI's own Python, with its modules but without a server."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from imports import at_start

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def inside(comfy_install: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory):
    """Runs a script of tests/comfy/scripts in ComfyUI; its output's lines."""
    comfy, python = comfy_install
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    for name in ("PYTHONPATH", "PYTHONHOME"):
        environment.pop(name, None)

    def run(script: str, *arguments: object) -> list[str]:
        command = [python, HERE / "inside.py", comfy, HERE / "scripts" / script, *map(str, arguments)]
        process = subprocess.run(command, cwd=tmp_path_factory.mktemp("inside"), env=environment, capture_output=True,
                                 text=True, check=False)
        assert process.returncode == 0, process.stderr[-3000:]
        return process.stdout.splitlines()

    return run


def test_comfyuis_start_imports_nothing_that_only_runs_need(inside):
    """As tests/test_start.py reads it from the sources; indexes of shards are read where there are shards."""
    count, *found = inside("start.py")
    assert count == "11"
    expected = {".".join(parts).removesuffix(".__init__") for parts in at_start()}
    assert set(found) - {f"tpec.files.{name}" for name in ("dtypes", "header", "shards")} == expected


def test_every_form_of_memory_error_sends_the_work_to_the_cpu(inside):
    assert inside("fallback.py") == ["cpu True"] * 5 + ["raised True"]


def test_backward_runs_restore_what_stood_there_and_say_why_they_fail(inside):
    assert inside("backward.py") == ["restored", "RuntimeError): turn", "(no grad): turn", "not enough VRAM",
                                     "not enough VRAM", "restored after errors", "both sides of every step",
                                     "runs of one step"]


def test_steps_count_by_the_square_of_how_far_they_go(inside):
    lines = inside("weighing.py")
    assert lines[0] == "[1.0, 9.0, 36.0]"
    assert lines[1:] == ["[0.6, 1.58, 0.82]", "[1.0]", "[0.0652, 0.587, 2.3478]", "(1.0, 2.0) (1.0, 2.0)", "20.0",
                         "untouched True"]


def test_results_in_the_temp_folder(inside, tmp_path: Path):
    assert inside("results.py", tmp_path) == [
        "a changed file is made again", "a missing file is made again", "an intact file is not",
        "leftovers go first", "the rest stays", "what begins anew counts as room", "then results",
        "what is in use stays", "False False False True True True"]


#: As ComfyUI's own empty latent nodes make them for these sizes.
USUAL = {
    "SD15": ["pictures", [1, 4, 64, 64]], "SDXL": ["pictures", [1, 4, 128, 128]],
    "SD3": ["pictures", [1, 16, 128, 128]],
    "Flux": ["pictures", [1, 16, 128, 128]], "FluxSchnell": ["pictures", [1, 16, 128, 128]],
    "Flux2": ["pictures", [1, 128, 64, 64]], "Chroma": ["pictures", [1, 16, 128, 128]],
    "ChromaRadiance": ["pictures", [1, 3, 1024, 1024]], "HunyuanImage21": ["pictures", [1, 64, 64, 64]],
    "QwenImage": ["pictures", [1, 16, 1, 166, 166]], "Anima": ["pictures", [1, 16, 1, 128, 128]],
    "Stable_Cascade_C": ["pictures", [1, 16, 24, 24]], "Kandinsky5Image": ["pictures", [1, 16, 128, 128]],
    "WAN21_T2V": ["video", [1, 16, 21, 60, 104]], "WAN21_Vace": ["video", [1, 16, 21, 60, 104]],
    "WAN22_T2V": ["video", [1, 48, 31, 44, 80]], "HunyuanVideo": ["video", [1, 16, 19, 60, 106]],
    "HunyuanVideo15": ["video", [1, 32, 31, 30, 53]], "LTXV": ["video", [1, 128, 13, 16, 24]],
    "GenmoMochi": ["video", [1, 12, 7, 60, 106]], "CosmosT2V": ["video", [1, 16, 16, 88, 160]],
    "Kandinsky5": ["video", [1, 16, 31, 64, 96]], "StableAudio": ["audio", [1, 64, 1024]],
    "ACEStep": ["audio", [1, 8, 16, 1292]], "ACEStep15": ["audio", [1, 64, 3000]],
    "SVD_img2vid": None, "LTXAV": None, "Hunyuan3Dv2": None, "SeedVR2": None,
}


def test_usual_sizes_of_the_families(inside):
    found = json.loads(inside("sizes.py")[-1])
    assert {name: found[name] for name in USUAL if name in found} == {
        name: value for name, value in USUAL.items() if name in found}
    assert {"SD15", "SDXL", "SD3", "Flux", "WAN21_T2V", "HunyuanVideo", "LTXV", "StableAudio"} <= found.keys()


#: Width of tokens and of the pooled embedding, 0 where there is none.
EMBEDDINGS = {
    "sd15": [768, 0], "sd21": [1024, 0], "sdxl": [2048, 1280], "sdxl-refiner": [1280, 1280], "sd3-medium": [4096, 2048],
    "auraflow-0.3": [2048, 0], "pixart-sigma-1024": [4096, 0], "flux1-dev": [4096, 768], "flux2-dev": [15360, 0],
    "chroma1": [4096, 0], "lumina2": [2304, 0], "z-image": [2560, 0], "hidream-i1": [4096, 2048],
    "qwen-image": [3584, 0], "wan2.1-t2v-14b": [4096, 0], "hunyuan-video-t2v": [4096, 768], "ltx-video-2b": [4096, 0],
    "mochi-preview": [4096, 0], "cosmos-predict2-2b-t2i": [1024, 0], "kandinsky5-image-lite": [3584, 768],
    "stable-audio-open-1.0": [768, 0], "trellis2": None,
}


def test_text_embeddings_of_the_families_by_their_layers(inside):
    unfit, found, sizes = map(json.loads, inside("prompt_free.py", HERE.parent)[-3:])
    assert unfit == ["mat1 and mat2", "out of memory passes"]
    assert {name: found[name] for name in EMBEDDINGS} == EMBEDDINGS
    assert sizes == {"pictures 100": [256, 256, 1], "pictures 1024": [512, 512, 1],
                     "pictures 1000000": [1024, 1024, 1], "video 100": [384, 256, 5], "video 1024": [704, 384, 5],
                     "video 1000000": [832, 480, 81], **dict.fromkeys(
                         ("sound 100", "sound 1024", "sound 1000000"), [0, 0, 1])}


def test_self_calibration_takes_the_effort_that_the_machine_is_fast_enough_for(inside):
    assert inside("efforts.py") == [
        "16 x 20 steps and backwards", "8 x 20 steps and backwards", "6 x 20 steps and backwards", "16 x 10 steps",
        "16 x 5 steps", "sampling it would take about 53 min on this machine",
        "16 x 20 steps and backwards", "6 x 20 steps and backwards", "16 x 20 steps", "16 x 10 steps",
        "sampling it would take about 53 min on this machine",
        "[18, 19, 20, 21, 22]", "True"]


def test_patched_weights_in_every_state_of_the_model(inside):
    assert inside("patched.py") == [
        "static in every state", "dynamic in every state", "where weights that stay loaded carry the patch already",
        "partly loaded", "ComfyUI knows the handle for a model", "another identity for other patches and other models",
        "results hold no model", "padded weights", "without VRAM on the CPU", "keys of v-prediction models"]
