"""Writes tests/data from ComfyUI itself, with its Python: build_inventory.py COMFYUI_FOLDER OUTPUT_FOLDER [NAME ...]

Every model is built at its real size on torch's meta device, which costs no memory, and its shapes go back to
ComfyUI's own detection: it must recognise the intended class, and that class built anew from what was detected must
have the same tensors. With names only those diffusion models are written.
"""

import logging
import re
from pathlib import Path
from typing import Any

from without_server import start

ARGUMENTS = start()

import comfy.model_detection  # noqa: E402
import comfy.supported_models  # noqa: E402
import inventory  # noqa: E402
import torch  # noqa: E402
from encoder_facts import checkpoints, encoders, together  # noqa: E402
from meta_models import META, Noting, fake, tensors_of  # noqa: E402
from variants import VARIANTS, Variant  # noqa: E402


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
    shapes = {name: shape for name, (shape,
                                     _) in file.items()} | {name: (0,) for name in variant.markers} | variant.beside
    state = fake(shapes)
    config = comfy.model_detection.model_config_from_unet(state, "", metadata=variant.metadata)
    assert config is not None, f"{variant.name}: ComfyUI does not know it"
    name = type(config).__name__
    assert name == variant.model_class, f"{variant.name}: recognised as {name}, not {variant.model_class}"
    return config, config.process_unet_state_dict({name: torch.empty(shape, device=META) for name, (shape,
                                                                                                    _) in file.items()})


def diffusion(variant: Variant) -> inventory.Model:
    """The facts of one variant, proved against ComfyUI's detection."""
    intended = getattr(comfy.supported_models, variant.model_class)(variant.config)
    tensors = build(intended, variant)
    file = published(variant, tensors)
    config, loaded = recognised(variant, file)
    again = build(config, variant)
    assert {n: s for n, (s, _) in again.items()} == {n: s for n, (s, _) in tensors.items()}, difference(variant, again,
                                                                                                        tensors)
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


DIFFUSION = """Diffusion models of ComfyUI v0.33.0 at their published sizes. Written by tests/comfy/build_inventory.py,
never by hand; the format is described in tests/inventory.py. `linear`: the share of weights of ComfyUI's Linear."""
ENCODERS = """Text encoder files of ComfyUI v0.33.0, written like diffusion.txt. `te` is what ComfyUI recognises;
`honoured` and `not honoured`: types of the loader node that do and do not read the scales of such a file alone."""
LOADERS = """Text encoders that come together in ComfyUI v0.33.0, written like diffusion.txt: loader nodes with several
files, then full checkpoints by class. Per encoder: in how many Linears scales are honoured; `own` has no own file."""


def main() -> None:
    logging.disable(logging.WARNING)
    out, *names = Path(ARGUMENTS[0]), *ARGUMENTS[1:]
    chosen = [variant for variant in VARIANTS if not names or variant.name in names]
    inventory.write(out / "diffusion.txt", [diffusion(variant) for variant in chosen], DIFFUSION)
    if not names:
        models = {model.name: model for model in encoders()}
        inventory.write(out / "encoders.txt", models.values(), ENCODERS)
        inventory.write(out / "loaders.txt", [*together(models), *checkpoints(models)], LOADERS)


if __name__ == "__main__":
    main()
