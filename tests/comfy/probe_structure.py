"""Asks nodes/host/structure.py about models of tests/data, with ComfyUI's Python: probe_structure.py COMFYUI [NAME ...]

Prints JSON: per model what the probe found and how long it took, and what of ComfyUI's state it changed. A name that
ends with `@PREFIX` puts this prefix before all tensors.
"""

import importlib
import json
import logging
import sys
import time

from without_server import start

ARGUMENTS = start()

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import inventory  # noqa: E402
import torch  # noqa: E402

structure_of = importlib.import_module("pack.nodes.host.structure").structure_of
TensorInfo = importlib.import_module("pack.tpec.files.header").TensorInfo


def state() -> list[object]:
    """What the probe must leave alone."""
    return [torch.get_rng_state().tolist(), id(comfy.sd.CLIP), id(comfy.sd.load_text_encoder_state_dicts),
            len(logging.getLogger().filters), len(comfy.model_management.current_loaded_models),
            torch.is_grad_enabled(), str(torch.get_default_dtype())]


def probe(model: inventory.Model, prefix: str = "") -> dict[str, object]:
    infos = {prefix + name: TensorInfo(prefix + name, "BF16", shape, 0, 0)
             for name, (shape, _) in model.tensors.items()}
    metadata = {"config": model.facts["metadata"]} if "metadata" in model.facts else {}
    start = time.monotonic()
    found = structure_of(infos, metadata)
    facts = {"seconds": time.monotonic() - start}
    if found is None:
        return facts
    return facts | {"name": found.name, "linears": sorted(found.linears), "embeddings": sorted(found.embeddings),
                    "experts": sorted(found.experts)}


def main() -> None:
    models = {name: model for file in ("diffusion.txt", "encoders.txt")
              for name, model in inventory.read(inventory.DATA / file).items()}
    before = state()
    found = {}
    for name in ARGUMENTS or models:
        model, _, prefix = name.partition("@")
        found[name] = probe(models[model], prefix)
    sys.stdout.write(json.dumps({"found": found, "unchanged": state() == before}))


if __name__ == "__main__":
    main()
