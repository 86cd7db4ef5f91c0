"""The latent of each family's usual size: prints a JSON object of shapes and kinds by ComfyUI's class."""

import json

import comfy.supported_models as supported
from pack.nodes.calibration.latents import latent_shape, usual_size
from pack.nodes.calibration.prompts import BUILT_IN

found = {}
for kind in supported.models:
    config = kind.__new__(kind)
    latent_format = kind.latent_format() if isinstance(kind.latent_format, type) else kind.latent_format
    size = usual_size(config, latent_format)
    if size is None:
        found[kind.__name__] = None
        continue
    shape = latent_shape(size, latent_format)
    if len(BUILT_IN[size.kind]) != 32 or len(shape) not in (latent_format.latent_dimensions + 2, 4):
        raise SystemExit(f"{kind.__name__}: {size} {shape}")
    found[kind.__name__] = [size.kind, list(shape)]
print(json.dumps(found))
