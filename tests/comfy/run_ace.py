"""The two encoders of ACE-Step 1.5 in FP8, each in both places of ComfyUI's loader, with its Python:
run_ace.py COMFYUI FOLDER

Prints a line of JSON: for each pair of files, the relative difference of what either encoder makes of words, and of the
scores of the words that the language model writes on, from the same of the exact weights.
"""

import json
import logging
import sys
from pathlib import Path

import run_encoders as encoders
import torch
from meaning import copy_weights, dequantized, relative
from safetensors.torch import save_file
from tiny_encoders import TINY_ENCODERS

import comfy.sd  # isort: skip - run_encoders makes it importable
from comfy.text_encoders.ace15 import _audio_logits  # isort: skip

TINY = {tiny.name: tiny for tiny in TINY_ENCODERS}
#: Both have the names and sizes of other encoders but for the number of words, which is small here.
SMALL, LANGUAGE = TINY["qwen3-0.6b"], TINY["qwen3-2b"]


def read_by(first: Path, second: Path) -> dict[str, torch.Tensor]:
    sizes = {"_model_config": dict(SMALL.sizes), "dtype": torch.float32}
    clip = comfy.sd.load_clip([str(first), str(second)], clip_type=comfy.sd.CLIPType.ACE, model_options=sizes)
    copy_weights(clip.cond_stage_model)
    small, language = clip.cond_stage_model.qwen3_06b, clip.cond_stage_model.qwen3_2b
    hidden = torch.randn(1, 1, 2048, generator=torch.Generator().manual_seed(5))
    return {"small": small.encode_token_weights(encoders.Words([encoders.TEXT]))[0],
            "language": language.encode_token_weights(encoders.Words([encoders.TEXT]))[0],
            "scores": _audio_logits(language.transformer.model, hidden, 100, 300)[0]}


def main() -> None:
    folder = Path(encoders.ARGUMENTS[0])
    logging.disable(logging.WARNING)
    files: dict[str, Path] = {}
    for tiny in (SMALL, LANGUAGE):
        for kind in ("original", "fp8", "exact", "wrong"):
            files[f"{tiny.part} {kind}"] = folder / f"{tiny.part}_{kind}.safetensors"
        save_file(encoders.weights(tiny), files[f"{tiny.part} original"])
        encoders.quantized(files[f"{tiny.part} original"], files[f"{tiny.part} fp8"])
        save_file(dequantized(files[f"{tiny.part} fp8"]), files[f"{tiny.part} exact"])
    table = "model.embed_tokens"
    encoders.unscaled(files["qwen3_2b fp8"], table, files["qwen3_2b wrong"])
    wanted = read_by(files["qwen3_2b exact"], files["qwen3_06b exact"])
    pairs = {"language model first": ("qwen3_2b fp8", "qwen3_06b exact"),
             "language model second": ("qwen3_06b exact", "qwen3_2b fp8"),
             "language model without its table's scale": ("qwen3_2b wrong", "qwen3_06b exact"),
             "both": ("qwen3_2b fp8", "qwen3_06b fp8"),
             "the small one alone": ("qwen3_06b fp8", "qwen3_2b exact")}
    sys.stdout.write(json.dumps({title: {use: relative(value, wanted[use]) for use, value in read_by(
        files[first], files[second]).items()} for title, (first, second) in pairs.items()}) + "\n")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
