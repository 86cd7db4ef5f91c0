"""Text encoders inside full checkpoints: which of them are quantized as well, because the user named them."""

from collections.abc import Sequence

from ..errors import TpecError
from .detection import Detection, Tensors, part_of, recognise
from .family import Encoder
from .table import FAMILIES


def choose_parts(name: str, tensors: Tensors, found: Detection,
                 wanted: Sequence[str]) -> tuple[tuple[Detection, ...], tuple[str, ...]]:
    """The parts named by `wanted` besides `found`, and sentences about those that stay as they are.

    `name` is the file's, for messages. Raises TpecError for a part that the file does not hold.
    """
    there = {encoder.name: encoder for encoder in found.family.encoders
             if any(tensor.startswith(encoder.prefix) for tensor in tensors)}
    parts, notes = [], []
    for part in dict.fromkeys(wanted):
        encoder = there.get(part)
        if encoder is None:
            choices = f"it can be one of {', '.join(there)}" if there else "it holds no text encoder of its model"
            raise TpecError(f"{name} has no part '{part}': {choices}.")
        if encoder.ignored:
            notes.append(f"{part} stays as it is: {encoder.ignored}")
        else:
            parts.append(_detected(name, tensors, encoder))
    return tuple(parts), tuple(notes)


def _detected(name: str, tensors: Tensors, encoder: Encoder) -> Detection:
    family = FAMILIES[encoder.family]
    part = part_of(tensors, encoder.prefix)
    if recognise(part, [family]) is None:
        raise TpecError(f"The part '{encoder.name}' of {name} is not the {family.title} that belongs to this model: "
                        "leave it as it is.")
    return Detection(family, encoder.prefix, f"{family.title} under '{encoder.prefix}'")
