"""safetensors dtype codes and their torch dtypes (https://github.com/huggingface/safetensors, format section)."""

import torch

TORCH_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

ITEM_BYTES: dict[str, int] = {code: dtype.itemsize for code, dtype in TORCH_DTYPES.items()}
ITEM_BYTES |= {"C64": 8, "F8_E8M0": 1}

#: Formats below one byte; a file with them is quantized already.
SUB_BYTE_BITS: dict[str, int] = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}

#: Inputs that can be quantized.
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


def byte_count(code: str, shape: tuple[int, ...]) -> int | None:
    """Bytes that a tensor of this safetensors dtype code and shape takes, None for a code that is not known here."""
    items = 1
    for size in shape:
        items *= size
    if code in SUB_BYTE_BITS:
        return (items * SUB_BYTE_BITS[code] + 7) // 8
    if code not in ITEM_BYTES:
        return None
    return items * ITEM_BYTES[code]
