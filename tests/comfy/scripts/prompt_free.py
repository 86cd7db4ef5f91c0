"""Embeddings of published models by their layers' shapes, and modest sizes: prints a JSON object of each.

Before them a line of what became of errors.

    prompt_free.py FOLDER_OF_INVENTORY
"""

import json
import sys
from dataclasses import astuple
from types import SimpleNamespace

import torch
from pack.nodes.calibration.latents import Size, modest
from pack.nodes.calibration.prompt_free import candidates, fitting

sys.path.insert(0, sys.argv[1])
import inventory

unfit: list[str] = []
with fitting(unfit):
    raise RuntimeError("mat1 and mat2\nmore")
try:
    with fitting(unfit):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
except torch.cuda.OutOfMemoryError:
    unfit.append("out of memory passes")
print(json.dumps(unfit))

found = {}
for name, model in inventory.read(inventory.DATA / "diffusion.txt").items():
    root = torch.nn.Module()
    layers = {layer.removesuffix(".weight"): shape[1] for layer, (shape, kind) in model.tensors.items()
              if kind == "linear" and layer.endswith(".weight")}
    root.named_modules = lambda layers=layers: [
        (layer, SimpleNamespace(in_features=width)) for layer, width in layers.items()]
    adm = next((width for layer, width in layers.items() if layer.startswith("label_emb")), 0)
    patcher = SimpleNamespace(model=SimpleNamespace(diffusion_model=root, adm_channels=adm))
    first = next(candidates(patcher), None)
    found[name] = None if first is None else [first.width, first.pooled]
print(json.dumps(found))
sizes = {"pictures": Size(), "video": Size("video", 832, 480, 81), "sound": Size("audio", 0, 0, 1, 47.6, 21.5)}
print(json.dumps({f"{name} {tokens}": list(astuple(modest(size, tokens))[1:4])
                  for name, size in sizes.items() for tokens in (100, 1024, 10**6)}))
