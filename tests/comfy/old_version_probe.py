"""Run by the Python of a ComfyUI tree: load diffusion models there and compare what they compute.

    python old_version_probe.py TREE INPUTS QUANTIZED REFERENCE...

INPUTS holds x, t, context and pooled. Prints a JSON object: the tree's version and for each reference the relative
difference of the quantized model's output from it.
"""

import json
import sys

tree, inputs, quantized, *references = sys.argv[1:]
sys.path.insert(0, tree)
sys.argv = ["probe", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_detection  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfyui_version  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

SIZES = {"hidden_size": 384, "num_heads": 3, "context_in_dim": 384, "vec_in_dim": 384}
detect = comfy.model_detection.detect_unet_config


def detect_small(*args, **kwargs) -> dict:
    """Old trees know Flux in its real sizes only; these are the small test model's, all else is theirs."""
    return {**detect(*args, **kwargs), **SIZES}


comfy.model_detection.detect_unet_config = detect_small


def output(path: str) -> torch.Tensor:
    """The model's predictions, [n, 16, 32, 32] float32."""
    given = {name: tensor.float() for name, tensor in load_file(inputs).items()}
    patcher = comfy.sd.load_diffusion_model(path)
    comfy.model_management.load_models_gpu([patcher])
    with torch.inference_mode():
        answer = patcher.model.apply_model(given["x"], given["t"], c_crossattn=given["context"], y=given["pooled"])
    return answer.float()


got = output(quantized)
differences = [((got - wanted).norm() / wanted.norm()).item() for wanted in map(output, references)]
sys.stdout.write(json.dumps({"version": comfyui_version.__version__, "differences": differences}) + "\n")
