"""safetensors dtype codes and their torch dtypes (https://github.com/huggingface/safetensors, format section)."""

from collections.abc import Sequence

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
ITEM_BYTES |= {"C64": 8, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1}

#: Formats below one byte; a file with them is quantized already.
SUB_BYTE_BITS: dict[str, int] = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}

#: Inputs that can be quantized.
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


#: Sizes, positions and counts beyond this are more than any reader takes.
LARGEST = 2**64 - 1


def byte_count(code: str, shape: Sequence[int]) -> int | None:
    """Bytes of a tensor, or None for a dtype code that is not known here.

    Raises OverflowError for a shape of more than 2^64 items, also where a zero further on makes it empty: readers
    multiply the sizes one after another. Raises ValueError for items below one byte that do not fill the last one.
    """
    bits = SUB_BYTE_BITS.get(code) or 8 * ITEM_BYTES.get(code, 0)
    if not bits:
        return None
    items = 1
    for size in shape:
        items *= size
        if items > LARGEST:  # at once: the product of a long shape takes for ever
            raise OverflowError("more items than can be counted")
    if items * bits % 8:
        raise ValueError("its items do not fill the last byte")
    return items * bits // 8
