"""What the installed ComfyUI says a model is made of, as plain data: the second source beside the table of families."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Structure:
    """The modules of a diffusion model as ComfyUI builds it.

    name: ComfyUI's class, of `comfy.supported_models`. linears, embeddings, experts: module names relative to the
    diffusion model, as in the file after its prefix; a Linear's weight [out, in] is `<name>.weight` there.
    """

    name: str
    linears: frozenset[str]
    embeddings: frozenset[str] = frozenset()
    experts: frozenset[str] = frozenset()
