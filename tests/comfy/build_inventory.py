"""Writes tests/data from ComfyUI itself: python build_inventory.py COMFYUI_FOLDER [--check], run with ComfyUI's Python.

Every model is built at its real size on torch's meta device, which costs no memory, and its shapes go back to ComfyUI's
own detection: it must recognise the intended class, and that class built anew from what was detected must have the same tensors.
"""

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [sys.argv[1], str(HERE.parent), str(HERE)]
sys.argv[1:] = ["--cpu"] if len(sys.argv) == 2 else ["--cpu", *sys.argv[2:]]

import inventory  # noqa: E402
import torch  # noqa: E402
from diffusion_variants import VARIANTS, Variant  # noqa: E402

CHECK = "--check" in sys.argv
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.model_detection  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402

META = torch.device("meta")
Shapes = dict[str, tuple[int, ...]]


class Noting(comfy.ops.manual_cast):
    """ComfyUI's operations, as classes of our own: a module built from them can be told from any other."""

    class Linear(comfy.ops.manual_cast.Linear):
        pass

    class Embedding(comfy.ops.manual_cast.Embedding):
        pass


def kind_of(module: torch.nn.Module) -> str:
    """What a module's tensors are to a quantizer."""
    nn = torch.nn
    if isinstance(module, Noting.Linear):
        return "linear"
    if isinstance(module, Noting.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear):
        return "torch_linear"
    if isinstance(module, nn.Embedding):
        return "torch_embedding"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if "norm" in type(module).__name__.lower():
        return "norm"
    return "parameter"


def tensors_of(root: torch.nn.Module) -> inventory.Tensors:
    """{name: (shape, kind)} of all that a file of this model holds."""
    found: inventory.Tensors = {}
    for prefix, module in root.named_modules():
        dot = f"{prefix}." if prefix else ""
        kind = kind_of(module)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                bias = name == inventory.BIAS and kind not in ("parameter", "norm")
                found[dot + name] = (tuple(parameter.shape), inventory.BIAS if bias else kind)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found[dot + name] = (tuple(buffer.shape), "buffer")
    return found


def fake(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Tensors of these shapes without memory: one zero each, seen many times over."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def build(config: Any, variant: Variant) -> inventory.Tensors:
    """The tensors of the diffusion model that a ComfyUI model configuration makes."""
    config.custom_operations = Noting
    return tensors_of(config.get_model(fake(variant.beside), "", device=torch.device(variant.device)).diffusion_model)


def published(variant: Variant, tensors: inventory.Tensors) -> inventory.Tensors:
    """The tensors under the names of the published file; parts that it holds merged become one `changed` tensor."""
    named = {variant.rename(name) if variant.rename else name: value for name, value in tensors.items()}
    if variant.merge is None:
        return named
    pattern, parts, template = variant.merge
    out: inventory.Tensors = {}
    for name, (shape, kind) in named.items():
        match = re.match(pattern, name)
        if match is None:
            out[name] = (shape, kind)
        elif match[2] == parts[0]:
            rows = sum(named[f"{match[1]}.{part}.{match[3]}"][0][0] for part in parts)
            out[template.format(*match.groups())] = ((rows, *shape[1:]), "changed")
    return out


def recognised(variant: Variant, file: inventory.Tensors) -> tuple[Any, dict[str, torch.Tensor]]:
    """ComfyUI's configuration for the file, and the file's tensors as that configuration's class wants to load them."""
    shapes = {name: shape for name, (shape, _) in file.items()} | {name: (0,) for name in variant.markers} | variant.beside
    state = fake(shapes)
    config = comfy.model_detection.model_config_from_unet(state, "", metadata=variant.metadata)
    assert config is not None, f"{variant.name}: ComfyUI does not know it"
    name = type(config).__name__
    assert name == variant.model_class, f"{variant.name}: recognised as {name}, not {variant.model_class}"
    return config, config.process_unet_state_dict({name: torch.empty(shape, device=META) for name, (shape, _) in file.items()})


def diffusion(variant: Variant) -> inventory.Model:
    """The facts of one variant, proved against ComfyUI's detection."""
    intended = getattr(comfy.supported_models, variant.model_class)(variant.config)
    tensors = build(intended, variant)
    file = published(variant, tensors)
    config, loaded = recognised(variant, file)
    again = build(config, variant)
    assert {n: s for n, (s, _) in again.items()} == {n: s for n, (s, _) in tensors.items()}, difference(variant, again, tensors)
    ours = {n: tuple(t.shape) for n, t in loaded.items()}
    assert ours == {n: s for n, (s, _) in tensors.items()}, difference(variant, ours, tensors)
    facts = {"class": variant.model_class} | ({"note": variant.note} if variant.note else {})
    if variant.metadata:
        facts["metadata"] = variant.metadata["config"]
    for name, shape in {**{name: (0,) for name in variant.markers}, **variant.beside}.items():
        file[name] = (shape, "buffer")
    total = sum(torch.Size(shape).numel() for shape, _ in file.values())
    linear = sum(torch.Size(shape).numel() for shape, kind in file.values() if kind == "linear")
    facts["parameters"], facts["linear"] = str(total), f"{100 * linear / total:.2f} %"
    return inventory.Model(variant.name, facts, file)


def difference(variant: Variant, these: dict, those: dict) -> str:
    a, b = ({n: v[0] if v and isinstance(v[0], tuple) else v for n, v in x.items()} for x in (these, those))
    wrong = [f"{n}: {a.get(n)} / {b.get(n)}" for n in [*a, *(n for n in b if n not in a)] if a.get(n) != b.get(n)]
    return f"{variant.name}: {len(wrong)} tensors differ: " + "; ".join(wrong[:12])


HEADING = """Diffusion models of ComfyUI v0.33.0 at their published sizes. Written by tests/comfy/build_inventory.py, never by hand;
the format is described in tests/inventory.py. `linear` says the share of parameters that are weights of ComfyUI's Linear."""


def main() -> None:
    models = [diffusion(variant) for variant in VARIANTS]
    inventory.write(inventory.DATA / "diffusion.txt", models, HEADING)


if __name__ == "__main__":
    main()
