"""Files load in older ComfyUI trees: each path of COMFYUI_OLD_PATHS, run with ComfyUI's Python, without a server."""

import json
import os
import subprocess
from pathlib import Path

import models
import pytest
import torch
from safetensors.torch import load_file
from test_main_job import dequantized

from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.run.pipeline import quantize
from tpec.settings import Settings

TREES = [path for path in os.environ.get("COMFYUI_OLD_PATHS", "").split(os.pathsep) if path]
FORMS = ("universal", "scaled_fp8", "comfy_quant")
PROBE = Path(__file__).with_name("old_version_probe.py")
#: The first version with native quantization; the ones before cast every Linear of such a model to FP8.
NATIVE = (0, 4)


@pytest.fixture(scope="module")
def files(shared_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A quantized file per format; `exact` means the same in float32, `cast` has the kept Linears in FP8 as well."""
    folder = tmp_path_factory.mktemp("old")
    source = open_checkpoint(shared_models / "tinyflux_shapes_bf16.safetensors")
    paths = {form: folder / f"{form}.safetensors" for form in FORMS}
    for form, path in paths.items():
        quantize(make_plan(source, Settings(format=form, method="nearest")), path)
    exact = dequantized(paths["universal"])
    quantized = {name for name, tensor in load_file(paths["universal"]).items() if tensor.dtype == torch.float8_e4m3fn}
    cast = {name: tensor.to(torch.float8_e4m3fn).float()
            if tensor.ndim == 2 and name not in quantized else tensor for name, tensor in exact.items()}
    paths["exact"] = models.save(exact, folder / "exact.safetensors")
    paths["cast"] = models.save(cast, folder / "cast.safetensors")
    stored = load_file(shared_models / "conditioning.safetensors")
    given = {"x": torch.randn(2, 16, 32, 32, generator=torch.Generator().manual_seed(1)),
             "t": torch.tensor([1.0, 0.9]), "context": stored["context"][:2], "pooled": stored["pooled"][:2]}
    paths["inputs"] = models.save(given, folder / "inputs.safetensors")
    return paths


@pytest.mark.skipif(not TREES, reason="COMFYUI_OLD_PATHS names no older ComfyUI trees")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tree", TREES)
def test_older_comfyui_computes_what_the_weights_mean(tree: str, form: str, files, comfy_install, figures):
    native = _version(tree) >= NATIVE
    if form == "comfy_quant" and not native:
        pytest.skip("versions before 0.4 do not read this form")
    command = [comfy_install[1], PROBE, tree, *(files[name] for name in ("inputs", form, "exact", "cast"))]
    run = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    answer = json.loads(run.stdout.splitlines()[-1])
    exact, cast = answer["differences"]
    figures.append(f"ComfyUI {answer['version']}, {form}: output differs by {exact:.2g} from the dequantized model's")
    assert (exact if native else cast) < 0.01
    assert exact < 0.1


def _version(tree: str) -> tuple[int, ...]:
    text = Path(tree, "comfyui_version.py").read_text("utf-8")
    return tuple(int(part) for part in text.split('"')[1].split("."))
