"""The command `demo`: a small checkpoint in Flux layout with weights that have structure, quantized and verified."""

import argparse

import torch

from ..device import choose_devices
from ..files.checkpoint import open_checkpoint
from ..files.plain import write_safetensors
from ..model.plan import make_plan
from ..run.pipeline import quantize
from ..settings import Settings
from .terminal import DONE, FAILED, TerminalProgress

Shapes = dict[str, tuple[int, ...]]


def flux_shapes(hidden: int, double: int, single: int, context: int = 64, pooled: int = 64) -> Shapes:
    """Names and shapes of a Flux-schnell-layout model; `hidden` is a multiple of 128."""
    shapes: Shapes = {}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    for name, columns in (("time_in", 256), ("vector_in", pooled)):
        linear(f"{name}.in_layer", hidden, columns)
        linear(f"{name}.out_layer", hidden, hidden)
    linear("img_in", hidden, 64)
    linear("txt_in", hidden, context)
    for block in range(double):
        for stream in ("img", "txt"):
            name = f"double_blocks.{block}.{stream}"
            linear(f"{name}_mod.lin", 6 * hidden, hidden)
            linear(f"{name}_attn.qkv", 3 * hidden, hidden)
            linear(f"{name}_attn.proj", hidden, hidden)
            linear(f"{name}_mlp.0", 4 * hidden, hidden)
            linear(f"{name}_mlp.2", hidden, 4 * hidden)
            shapes |= {f"{name}_attn.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    for block in range(single):
        name = f"single_blocks.{block}"
        linear(f"{name}.modulation.lin", 3 * hidden, hidden)
        linear(f"{name}.linear1", 7 * hidden, hidden)
        linear(f"{name}.linear2", hidden, 5 * hidden)
        shapes |= {f"{name}.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    linear("final_layer.linear", 64, hidden)
    linear("final_layer.adaLN_modulation.1", 2 * hidden, hidden)
    return shapes


def structured_weight(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """bfloat16: noise plus a few strong directions for matrices (as trained weights have), small noise for vectors."""
    noise = torch.randn(shape, generator=generator) * 0.02
    if len(shape) == 2:
        rows, columns = shape
        directions = torch.randn(rows, 4, generator=generator) @ torch.randn(4, columns, generator=generator)
        noise += directions * 0.01
    return noise.bfloat16()


def demo_tensors(hidden: int = 256, double: int = 1, single: int = 2) -> dict[str, torch.Tensor]:
    """The demo model's tensors, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.ones(shape).bfloat16() if name.endswith("norm.scale") else structured_weight(shape, generator)
            for name, shape in flux_shapes(hidden, double, single).items()}


def make_demo(options: argparse.Namespace) -> int:
    """Write demo_bf16.safetensors and demo_fp8.safetensors into `options.folder`; 1 if verifying finds a fault."""
    from ..check.verify import verify

    options.folder.mkdir(parents=True, exist_ok=True)
    source, output = options.folder / "demo_bf16.safetensors", options.folder / "demo_fp8.safetensors"
    write_safetensors(source, demo_tensors(), {"title": "TPEC demo, Flux layout, made-up weights"})
    print(f"made {source}")
    plan = make_plan(open_checkpoint(source), Settings())
    print(plan.summary())
    with TerminalProgress(enabled=True) as progress:
        report = quantize(plan, output, devices=choose_devices("auto"), progress=progress, overwrite=True)
    print(report.result())
    result = verify(source, output)
    print(result.text())
    print(f"{'verified' if result.ok else 'FAULTY'}: {output}")
    return DONE if result.ok else FAILED
