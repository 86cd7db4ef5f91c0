"""Small models of every class that a CPU can run: quantized, loaded by the stock loader, they compute what they
mean."""

import json
import subprocess
from pathlib import Path

import inventory
import pytest
from tiny_models import LARGE, NONE, TINY

SCRIPT = Path(__file__).parent / "run_tiny.py"
A_FEW = ["SD15", "Flux", "HunyuanVideo"]
SMALL = [tiny.variant.model_class for tiny in TINY]
ROUNDS = [SMALL[at:at + 12] for at in range(0, len(SMALL), 12)]


def run(install: tuple[Path, str], folder: Path, classes: list[str]) -> None:
    path, python = install
    done = subprocess.run([python, "-W", "ignore", SCRIPT, path, folder, *classes], capture_output=True, text=True,
                          timeout=1800)
    assert done.returncode == 0, f"after {done.stdout.splitlines()[-1:]}: {done.stderr[-2000:]}"
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"class"')]
    assert sorted(answer["class"] for answer in answers) == sorted(classes)
    for answer in answers:
        assert answer["name"] == answer["class"]
        assert answer["finite"] and answer["spread"] > 0, answer
        for form in ("comfy_quant", "scaled_fp8"):
            facts = answer[form]
            assert facts["layers"] > 0
            assert facts["difference"] < 1e-5, answer
            assert facts["rounding"] > 5 * facts["difference"], answer    # FP8 was in effect


def test_a_few_small_models_compute_what_their_weights_mean(comfy_install: tuple[Path, str], tmp_path: Path) -> None:
    run(comfy_install, tmp_path, A_FEW)


@pytest.mark.slow
@pytest.mark.parametrize("classes", ROUNDS, ids=lambda classes: f"{classes[0]}-{classes[-1]}")
def test_small_models_compute_what_their_weights_mean(comfy_install: tuple[Path, str], tmp_path: Path,
                                                      classes: list[str]) -> None:
    run(comfy_install, tmp_path, classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", [tiny.variant.model_class for tiny in LARGE])
def test_models_of_fixed_width_compute_what_their_weights_mean(comfy_install: tuple[Path, str], tmp_path: Path,
                                                               name: str) -> None:
    run(comfy_install, tmp_path, [name])


def test_every_class_has_a_small_model_or_a_reason() -> None:
    classes = {model.facts["class"] for model in inventory.read(inventory.DATA / "diffusion.txt").values()}
    assert classes == {*SMALL, *(tiny.variant.model_class for tiny in LARGE), *NONE}
