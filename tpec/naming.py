"""The output's name when the user gives none: as the published TPEC script derives it, in the input's folder."""

import os
from pathlib import Path

from .checkpoint import INDEX_SUFFIX


def default_output(source: Path, keep_distillation: bool) -> Path:
    """`model.safetensors` -> `model_float8_e4m3fn_scaled_learned[_nodistill]_svd.safetensors`."""
    if os.path.isdir(source):
        base = source / source.resolve().name
    elif source.name.endswith(INDEX_SUFFIX):
        base = source.with_name(source.name.removesuffix(INDEX_SUFFIX))
    else:
        base = source.with_suffix("")
    distilled = "_nodistill" if keep_distillation else ""
    return base.with_name(f"{base.name}_float8_e4m3fn_scaled_learned{distilled}_svd.safetensors")
