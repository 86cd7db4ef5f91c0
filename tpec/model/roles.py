"""What part a Linear plays in a transformer block, from its name: some parts' errors weigh more per byte than others'.

Measured layer by layer on two trained diffusion transformers (benchmarks/keep_quality.py): what attention hands to the
residual stream matters most for its size, then what attention reads; an MLP is four times as large for less, and
modulation acts through few numbers. A text stream beside the picture's matters little. In a text encoder all parts
matter alike for their size.
"""

import re

#: How much an error in a byte of a layer weighs, where relative errors are equal.
_OUT, _IN, _MLP, _MODULATION = 1.0, 0.25, 0.1, 0.05
#: A fused layer is its parts side by side; sizes are in units of the model's width squared.
_FUSED_IN = (3 * _IN + 4 * _MLP) / 7
_FUSED_OUT = (_OUT + 4 * _MLP) / 5
_UNKNOWN = 0.15
_TEXT_STREAM = 0.1

_MODULATES = re.compile(r"modulation|adaln|(^|[._])mod(_?[cxy]{1,2})?(\.|$)|norm\d*\.linear")
#: Endings that tell whose layer it is, not what it does.
_WHOSE = (".all", ".vid", ".txt")
_ATTENDS = re.compile(r"attn|attention|\.[qkvo]$")
_READS = re.compile(r"(^|_)(w?\d?[qkv]|w?qkv|kv|query|key|value|in_proj)(_|$)")
_WRITES = re.compile(r"(^|_)(w?\d?o|out|output|proj|dense)(_|$)")
_EXPANDS = re.compile(r"mlp|(^|[._])(ffn?|feed_forward|fc\d|w_?[123]|experts|densereludense|intermediate)([._]|$)")
_OF_TEXT = re.compile(r"(^|\.)(txt|text|context|caption)|(^|\.)(add_[qkv]_proj|to_add_out)$")


def density(layer: str) -> float:
    """The weight per byte of `layer`, a module's name without the file's prefix; that of attention's output is 1."""
    name = _unnumbered(layer)
    last = (name[:-4] if name.endswith(_WHOSE) else name).rpartition(".")[2]
    if modulates(layer):
        return _MODULATION
    if last in ("linear1", "to_qkv_mlp_proj"):
        return _FUSED_IN
    if last == "linear2" or re.search(r"single\w*\.proj_out$", name):
        return _FUSED_OUT
    if _ATTENDS.search(name) and not _EXPANDS.search(name):
        return _IN if _READS.search(last) else _OUT if _WRITES.search(last) else _UNKNOWN
    return _MLP if _EXPANDS.search(name) else _UNKNOWN


def modulates(layer: str) -> bool:
    """Whether the layer makes shifts, scales and gates: one vector per sample that acts on every token."""
    return _MODULATES.search(_unnumbered(layer)) is not None


def of_text(layer: str) -> float:
    """What to multiply by for a layer that works on text beside a picture, as far as its name says so; else 1."""
    return _TEXT_STREAM if _OF_TEXT.search(_unnumbered(layer)) else 1.0


def _unnumbered(layer: str) -> str:
    """In lower case, without the parts of the name that are numbers."""
    return ".".join(part for part in layer.lower().split(".") if not part.isdecimal())
