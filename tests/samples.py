"""Small models on disk for the engine's tests, written without the engine."""

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tpec.command.demo import flux_shapes

REPOSITORY = Path(__file__).parent.parent
HIDDEN = 128
ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "I64": 8}

Shapes = dict[str, tuple[int, ...]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Random tensors of the given shapes."""
    source = generator()
    return {name: (torch.randn(shape, generator=source) * 0.03).to(dtype) for name, shape in shapes.items()}


def tiny_flux(single: int = 1) -> dict[str, torch.Tensor]:
    """A Flux-layout model of about a million parameters."""
    return weights(flux_shapes(HIDDEN, 1, single))


def save_flux(folder: Path, name: str = "model.safetensors", single: int = 1,
              extra: Mapping[str, torch.Tensor] | None = None, metadata: Mapping[str, str] | None = None) -> Path:
    path = folder / name
    save_file(tiny_flux(single) | dict(extra or {}), path, dict(metadata or {"modelspec.title": "tiny"}))
    return path


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """Any header, well formed or not, before any data; `length` is what the first eight bytes claim."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def write_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str] | str = "BF16",
                 metadata: Mapping[str, str] | None = None) -> Path:
    """A file of zeros, sparse on disk: large shapes cost nothing. `dtypes` is one code, or codes by name."""
    header: dict[str, object] = {"__metadata__": dict(metadata or {})}
    at = 0
    for name, shape in shapes.items():
        code = dtypes if isinstance(dtypes, str) else dtypes.get(name, "BF16")
        size = ITEM_BYTES[code]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


def chroma_shapes() -> Shapes:
    """Chroma: Flux's blocks without modulation, time, guidance or vector embedders; a distilled guidance network."""
    shapes = {name: shape for name, shape in flux_shapes(HIDDEN, 1, 1).items()
              if not any(part in name for part in ("_mod.lin", "modulation", "time_in", "vector_in"))}
    guidance = "distilled_guidance_layer"
    for name, rows, columns in (("in_proj", 64, 32), ("layers.0.in_layer", 64, 64), ("layers.0.out_layer", 64, 64),
                                ("layers.1.in_layer", 64, 64), ("layers.1.out_layer", 64, 64), ("out_proj", 128, 64)):
        shapes |= {f"{guidance}.{name}.weight": (rows, columns), f"{guidance}.{name}.bias": (rows,)}
    return shapes | {f"{guidance}.norms.{at}.scale": (64,) for at in range(2)}


def t5xxl_shapes(inner: int = 10240, width: int = 16, blocks: int = 24) -> Shapes:
    """T5-XXL with decoder and lm_head, thin: ComfyUI tells it by block 23's 10240 rows."""
    shapes: Shapes = {"shared.weight": (32, width), "encoder.embed_tokens.weight": (32, width),
                      "lm_head.weight": (32, width)}
    for half in ("encoder", "decoder"):
        for block in range(blocks if half == "encoder" else 1):
            layer = f"{half}.block.{block}.layer"
            for name in "qkvo":
                shapes[f"{layer}.0.SelfAttention.{name}.weight"] = (width, width)
            if block == 0:
                shapes[f"{layer}.0.SelfAttention.relative_attention_bias.weight"] = (32, 4)
            rows = inner if block == blocks - 1 else 2 * width
            shapes |= {f"{layer}.1.DenseReluDense.{name}.weight": (rows, width) for name in ("wi_0", "wi_1")}
            shapes[f"{layer}.1.DenseReluDense.wo.weight"] = (width, rows)
            shapes |= {f"{layer}.{at}.layer_norm.weight": (width,) for at in range(2)}
        shapes[f"{half}.final_layer_norm.weight"] = (width,)
    return shapes


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Dtype, shape and bytes, NaN payloads included."""
    def raw(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))


def load(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def run_cli(*arguments: object, cwd: Path | None = None, **more: object) -> subprocess.CompletedProcess:
    """`python -m tpec ...` in its own process."""
    return subprocess.run([sys.executable, "-m", "tpec", *map(str, arguments)], cwd=cwd or REPOSITORY,
                          env=environment(), capture_output=True, text=True, timeout=240, **more)


def python(code: str, arguments: Sequence[object] = (), **more: object) -> subprocess.Popen:
    """A Python process that can import the engine."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment(),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def quick_disk(otherwise: Path) -> Path:
    """A folder on a disk that is quick to sync, where there is one."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else otherwise


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own of so many bytes ("256k"); hard links to it are impossible."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
