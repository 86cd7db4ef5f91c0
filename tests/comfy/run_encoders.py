"""Quantizes small text encoders, embeddings too, and runs them with ComfyUI's Python: run_encoders.py COMFYUI FOLDER
NAME ...

The same text goes through the file that was quantized, loaded by ComfyUI's own loader, and through a float32 file of
exactly what it means. Prints a line of JSON per encoder: the relative differences of the second from the first, from
the original, and from files in which the scale of one table counts for nothing.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from without_server import start

ARGUMENTS = start()

import comfy.sd  # noqa: E402
import torch  # noqa: E402
from encoder_facts import BY_NAME, caught, file_name, parts  # noqa: E402
from meaning import Tensors, copy_weights, dequantized, relative  # noqa: E402
from meta_models import Noting, fake, tensors_of  # noqa: E402
from pack_names import Settings, make_plan, open_checkpoint, quantize, structure_of  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_encoders import TINY_ENCODERS, WORDS, TinyEncoder  # noqa: E402

TEXT = [(at * 37 % WORDS, 1.0) for at in range(1, 129)]   # more than is cut off as the beginning of a template
#: Scores below it are of words that an encoder never writes.
_NEVER = -1e9
#: Text does not pass through these, and a file without them is complete for it.
_NOT_TEXT = ("visual.", "vision_model.", "audio_model.", "multi_modal_projector.", "audio_projector.")


class Wordless(comfy.sd.CLIP):
    """ComfyUI's encoder as its loader makes it, without what makes numbers of text."""

    def __init__(self, target: Any, **more: Any) -> None:
        target.tokenizer = lambda **_: None
        super().__init__(target, **more)


comfy.sd.CLIP = Wordless


class Words(list):
    """Words as every encoder takes them: under its own name, or as they are."""

    def __getitem__(self, key: Any) -> Any:
        return self[:] if isinstance(key, str) else super().__getitem__(key)


def options(tiny: TinyEncoder) -> dict[str, object]:
    return {f"{tiny.part}_model_config": dict(tiny.sizes), "dtype": torch.float32, **tiny.options}


def weights(tiny: TinyEncoder) -> Tensors:
    """Random float32 weights under the names of the published file, without what reads pictures and sound."""
    given = BY_NAME[tiny.name]
    root = caught([fake(given.seed)], given.clip_type).build(custom_operations=Noting, **options(tiny))
    (part,) = parts(root).values()
    make = torch.Generator().manual_seed(1)
    out: Tensors = {}
    for name, (shape, kind) in tensors_of(part).items():
        file = file_name(name, given.prefixes)
        if name.startswith(_NOT_TEXT) and file not in given.seed:
            continue
        drawn = torch.randn(shape, generator=make)
        if kind == "embedding":
            drawn *= 0.2
        elif len(shape) > 1:
            drawn /= drawn[0].numel() ** 0.5
        else:
            drawn = 1 + 0.1 * drawn if "norm" in name and name.endswith("weight") else 0.1 * drawn
        out[file] = drawn
    return out


def loaded(path: Path, tiny: TinyEncoder) -> comfy.sd.CLIP:
    kind = comfy.sd.CLIPType[BY_NAME[tiny.name].clip_type]
    clip = comfy.sd.load_clip([str(path)], clip_type=kind, model_options=options(tiny))
    copy_weights(clip.cond_stage_model)
    return clip


def read_by(clip: comfy.sd.CLIP) -> dict[str, torch.Tensor]:
    """What the encoder makes of words, and the scores of those that it writes on where ComfyUI lets it write."""
    given = clip.encode_from_tokens(Words([TEXT]), return_dict=True)
    found = {"encoded": torch.cat([value.float().flatten() for value in given.values()
                                   if torch.is_tensor(value) and value.is_floating_point()])}
    writer = next((module for module in clip.cond_stage_model.modules() if hasattr(module, "generate")
                   and hasattr(module, "logits") and hasattr(module.model.config, "stop_tokens")), None)
    if writer is not None and hasattr(clip.cond_stage_model, "generate"):
        scores: list[torch.Tensor] = []
        score = writer.logits
        writer.logits = lambda hidden: scores.append(score(hidden)) or scores[-1]
        clip.generate(Words([TEXT]), do_sample=False, max_length=3)
        found["written"] = torch.cat([step[step > _NEVER].float() for step in scores])
    return found


def differences(path: Path, tiny: TinyEncoder, wanted: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of each use; an encoder that stops writing earlier is compared as far as it goes."""
    found = {}
    for use, value in read_by(loaded(path, tiny)).items():
        both = min(len(value), len(wanted[use]))
        found[use] = relative(value[:both], wanted[use][:both])
    return found


def unscaled(path: Path, table: str, to: Path) -> Path:
    """The file as a loader reads it that does not know of the scale of `table`."""
    tensors = load_file(path)
    tensors[f"{table}.weight_scale"] = torch.ones_like(tensors[f"{table}.weight_scale"])
    save_file(tensors, to)
    return to


def quantized(path: Path, to: Path) -> Any:
    """The plan by which the file became FP8, its tables too, as the nodes make it."""
    checkpoint = open_checkpoint(path)
    structure = structure_of(checkpoint.tensors, checkpoint.metadata)
    plan = make_plan(checkpoint, Settings(method="nearest", format="comfy_quant", embeddings=True), structure)
    quantize(plan, to, overwrite=True)
    return plan


def run(tiny: TinyEncoder, folder: Path) -> dict[str, object]:
    original, fp8, exact, wrong = (folder / f"{name}.safetensors" for name in ("original", "fp8", "exact", "wrong"))
    save_file(weights(tiny), original)
    plan = quantized(original, fp8)
    save_file(dequantized(fp8), exact)
    wanted = read_by(loaded(exact, tiny))
    tables = [layer.linear for layer in plan.of("quantize") if layer.embedding]
    return {"encoder": tiny.name, "linears": len(plan.of("quantize")) - len(tables),
            "finite": all(value.isfinite().all().item() for value in wanted.values()),
            "spread": {use: value.std().item() for use, value in wanted.items()},
            "rounding": differences(original, tiny, wanted), "difference": differences(fp8, tiny, wanted),
            "unscaled": {table: differences(unscaled(fp8, table, wrong), tiny, wanted) for table in tables}}


def main() -> None:
    folder, *names = ARGUMENTS
    logging.disable(logging.WARNING)
    for tiny in TINY_ENCODERS:
        if tiny.name in names:
            sys.stdout.write(json.dumps(run(tiny, Path(folder))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
