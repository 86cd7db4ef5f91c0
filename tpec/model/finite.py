"""NaN and infinite values in tensors that stay as they are, looked at while they are copied."""

import re

import torch

from ..errors import TpecError
from ..files.dtypes import FLOATS, TORCH_DTYPES
from ..files.header import TensorInfo

#: Names (the last part) of parameters of a layer; whatever else a file holds may be a buffer, such as a noise
#: schedule's reciprocals or a mask, in which infinite values have a meaning.
_PARAMETER = re.compile(r"(^|_)(weight|bias|scale|shift|gamma|beta|scale_shift_table|embed|embedding|token)(_[gv])?$")
_MASK = re.compile(r"mask", re.IGNORECASE)
#: Least magnitude bits of a byte that are no number: e4m3fn has NaN only, e5m2 infinity and NaN.
_FP8_LIMITS = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C}


def holds_nonfinite(dtype: str, raw: torch.Tensor) -> bool:
    """Whether NaN or infinity is among whole elements of a safetensors dtype, given as bytes [n] (uint8).

    One pass without temporaries for the usual dtypes: far below what reading the bytes costs.
    """
    if not raw.numel():
        return False
    if dtype in _FP8_LIMITS:
        return int((raw & 0x7F).max()) >= _FP8_LIMITS[dtype]
    if dtype not in FLOATS:
        return False
    low, high = torch.aminmax(raw.view(TORCH_DTYPES[dtype]))
    return not bool(low.isfinite() & high.isfinite())


def is_parameter(name: str) -> bool:
    """Whether a tensor's name is that of a layer's parameter, where NaN and infinity break the model."""
    last = name.rpartition(".")[2]
    return _PARAMETER.search(last) is not None and _MASK.search(last) is None


def check_kept(info: TensorInfo, raw: torch.Tensor, keep: bool) -> bool:
    """Whether a piece (bytes [n] of whole elements) of a tensor that is copied holds NaN or infinite values.

    Raises TpecError when it does and the tensor is a parameter, unless the user wants to `keep` them.
    """
    if not holds_nonfinite(info.dtype, raw):
        return False
    if is_parameter(info.name) and not keep:
        raise TpecError(f"Tensor '{info.name}' holds NaN or infinite values: the model is broken there, use an intact "
                        "file, or keep them as they are (--keep-nonfinite, keep_nonfinite in the node).")
    return True


def nonfinite_note(names: list[str]) -> list[str]:
    """A sentence on tensors that were copied with NaN or infinite values, none for no names."""
    if not names:
        return []
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [f"NaN or infinite values were kept, as in the original, in {len(names)} tensor(s): {shown}"]
