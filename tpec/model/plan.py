"""What happens to every tensor of a checkpoint, decided and explained before the first byte is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import TpecError
from ..files.dtypes import FLOATS, byte_count
from ..files.header import TensorInfo
from ..files.source import Source
from ..patterns import matches
from ..settings import LayerMatmul, Settings
from .diffusers import in_comfyui_layout
from .families import CUSTOM, DROP, KEEP, QUANTIZE, Action, Detection, Family, choose_parts, detect, refuse_incomplete
from .fate import Agreement, fate
from .quantized import refuse_quantized
from .structure import Structure


@dataclass(frozen=True)
class TensorPlan:
    """One tensor's fate.

    info: the tensor in the source. local: its name without the file's prefix. action: QUANTIZE, KEEP or DROP. reason:
    why, for people. matmul: how ComfyUI is asked to multiply a quantized layer, '' for the settings' own way.
    embedding: a table of vectors that are looked up, not multiplied; quantized, it is rounded to nearest.
    """

    info: TensorInfo
    local: str
    action: Action
    reason: str
    matmul: LayerMatmul | Literal[""] = ""
    embedding: bool = False

    @property
    def name(self) -> str:
        """The tensor's name in the file."""
        return self.info.name

    @property
    def dtype(self) -> str:
        """The source's safetensors dtype code."""
        return self.info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a Linear's weight [out, in]."""
        return self.info.shape

    @property
    def linear(self) -> str:
        """The Linear's name in the file: the tensor's without '.weight'."""
        return self.name.removesuffix(".weight")

    @property
    def linear_in_model(self) -> str:
        """The Linear's name in the model, without the file's prefix: the key of calibration data."""
        return self.local.removesuffix(".weight")


@dataclass(frozen=True)
class Plan:
    """A checkpoint, the settings, what was detected and every tensor's fate, in file order.

    parts: the models in the file that are quantized, the first is the main one (`family`, `prefix`, `why`). tensors:
    one entry for every tensor, biases and norms included. notes: sentences for the summary. bought: sentences on what
    was measured for `settings.keep_quality` and `matmul: auto`, () until that is done.
    """

    checkpoint: Source
    settings: Settings
    parts: tuple[Detection, ...]
    tensors: tuple[TensorPlan, ...]
    notes: tuple[str, ...] = ()
    bought: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        """The main model's layout."""
        return self.parts[0].family

    @property
    def prefix(self) -> str:
        """What the names of the main model's tensors begin with in the file, '' for nothing."""
        return self.parts[0].prefix

    @property
    def why(self) -> str:
        """How the main model was recognised, for people."""
        return self.parts[0].why

    def of(self, action: Action) -> tuple[TensorPlan, ...]:
        """The tensors with this fate, in file order."""
        return tuple(layer for layer in self.tensors if layer.action == action)

    def part(self, name: str) -> Detection | None:
        """The part that the tensor or layer `name` of the file belongs to."""
        return part_at(self.parts, name)

    @property
    def kind(self) -> str:
        """ComfyUI's model folder for the result."""
        written = [one.name for one in self.tensors if one.action != DROP]
        if self.prefix and not all(name.startswith(self.prefix) for name in written):
            return "checkpoints"
        return self.family.kind

    @property
    def output_nbytes(self) -> int:
        """Bytes of tensor data in the result, scales and markers not counted."""
        return sum(layer.info.items if layer.action == QUANTIZE else layer.info.nbytes
                   for layer in self.tensors if layer.action != DROP)

    def summary(self) -> str:
        """A few lines for people: what was detected, what happens, how large the result is."""
        quantized, kept, dropped = self.of(QUANTIZE), self.of(KEEP), self.of(DROP)
        tables = sum(layer.embedding for layer in quantized)
        before, after = self.checkpoint.nbytes, self.output_nbytes
        lines = [
            f"{self.checkpoint.name}: {'; '.join(part.why for part in self.parts)}",
            f"{len(quantized) - tables} Linear layers" + (f" and {tables} token embedding(s)" if tables else "")
            + f" become FP8, {len(kept)} tensors stay as they are"
            + (f", {len(dropped)} are dropped" if dropped else ""),
            *dict.fromkeys([*self.checkpoint.notes, *self.notes]),
            *self.bought,
            f"{before / 1e9:.3f} GB -> {after / 1e9:.3f} GB ({after / before:.2f} x), format {self.settings.format}",
        ]
        return "\n".join(lines)

    def table(self) -> str:
        """One line per tensor: action, dtype, shape, name, reason."""
        return "\n".join(
            f"{layer.action:8} {layer.dtype:5} {'x'.join(map(str, layer.shape)) or 'scalar':>14}  {layer.name}  "
            f"({layer.reason})" for layer in self.tensors)


def make_plan(checkpoint: Source, settings: Settings, structure: Structure | None = None) -> Plan:
    """Decide every tensor's fate from header and settings; no weight is read.

    checkpoint: a file (`open_checkpoint`) or a model in memory; a known diffusers layout is planned in ComfyUI's.
    structure: what the installed ComfyUI says of the diffusion model; a tensor becomes FP8 only if it and the table
    agree, and a family that only ComfyUI knows gets a generic rule. Raises TpecError for anything that must not be
    quantized.
    """
    checkpoint = in_comfyui_layout(checkpoint)
    _refuse_unknown_dtypes(checkpoint)
    found = _detect(checkpoint, settings, structure)
    if settings.only_part and found.prefix and found.family.kind == "text_encoders":
        raise TpecError(f"The {found.family.title} of {checkpoint.name} cannot be written alone: ComfyUI would not "
                        f"find it under '{found.prefix}'. only_part is for the diffusion model, leave it off.")
    more, notes = choose_parts(checkpoint.name, checkpoint.tensors, found, settings.part)
    parts = (found, *more)
    for part in parts:
        refuse_quantized(checkpoint, _tensors_of(part, parts, checkpoint.tensors), f"the {part.family.title}")
        refuse_incomplete(checkpoint.name, part, checkpoint.tensors)
    # A text encoder inside a full checkpoint is not what ComfyUI was asked about.
    inside = bool(found.prefix) and found.family.kind == "text_encoders"
    agreement = Agreement(found.family, None if inside else structure)
    layers = tuple(_decide(info, parts, settings, agreement) for info in checkpoint.tensors.values())
    if not any(layer.action == QUANTIZE for layer in layers):
        raise TpecError(f"In {checkpoint.name} no layer is left to quantize: check the include and exclude patterns.")
    if settings.embeddings and not any(layer.embedding for layer in layers):
        notes = (*notes, "no embedding becomes FP8: there is none here whose scale ComfyUI applies")
    advice = () if found.prefix else found.family.advised(checkpoint.tensors)
    return Plan(checkpoint, settings, parts, layers, (*agreement.notes(), *notes, *advice))


def part_at(parts: tuple[Detection, ...], name: str) -> Detection | None:
    """Of the parts under whose prefix `name` lies, the one with the longest."""
    under = [part for part in parts if name.startswith(part.prefix)]
    return max(under, key=lambda part: len(part.prefix), default=None)


def _detect(checkpoint: Source, settings: Settings, structure: Structure | None) -> Detection:
    wanted = settings.family
    if settings.t5xxl:
        if wanted not in ("auto", "t5xxl"):
            raise TpecError(f"--t5xxl and family '{wanted}' contradict each other: give one of them.")
        wanted = "t5xxl"
    try:
        return detect(checkpoint.name, checkpoint.tensors, wanted, settings.include, structure)
    except TpecError:
        # A quantized file of an unknown family is better told that it is quantized.
        refuse_quantized(checkpoint, checkpoint.tensors, "it")
        raise


def _refuse_unknown_dtypes(checkpoint: Source) -> None:
    for name, info in checkpoint.tensors.items():
        if byte_count(info.dtype, info.shape) is None:
            raise TpecError(f"Tensor '{name}' of {checkpoint.name} has dtype {info.dtype}, which is not known here: "
                            "update this program, or use a bf16 or fp16 file.")


def _tensors_of(part: Detection, parts: tuple[Detection, ...],
                tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {name: info for name, info in tensors.items() if part_at(parts, name) is part}


def _decide(info: TensorInfo, parts: tuple[Detection, ...], settings: Settings, agreement: Agreement) -> TensorPlan:
    part = part_at(parts, info.name)
    if part is None:
        if settings.only_part:
            return TensorPlan(info, info.name, DROP, f"only the {parts[0].family.title} is wanted")
        return TensorPlan(info, info.name, KEEP, f"not part of the {parts[0].family.title}")
    local = info.name[len(part.prefix):]
    drop = part.family.dropped(local)
    if drop is not None:
        return TensorPlan(info, local, DROP, drop.reason)
    unfit = _unfit(info, local)
    if unfit:
        return TensorPlan(info, local, KEEP, unfit)
    if settings.exclude and matches(settings.exclude, info.name):
        return TensorPlan(info, local, KEEP, "excluded by you")
    included = bool(settings.include and matches(settings.include, info.name))
    if part.family is CUSTOM:
        return TensorPlan(info, local, *((QUANTIZE, "included by you") if included else (KEEP, "not named by include")))
    judge = agreement if part is parts[0] else Agreement(part.family, None)
    if settings.embeddings and judge.embedding(local.removesuffix(".weight")):
        return TensorPlan(info, local, QUANTIZE, "token embedding, FP8 as you asked", embedding=True)
    return TensorPlan(info, local, *fate(local.removesuffix(".weight"), part.family, settings, included, judge))


def _unfit(info: TensorInfo, local: str) -> str:
    """Why a tensor cannot be a Linear weight, or ''."""
    if not local.endswith(".weight"):
        return "bias" if local.endswith(".bias") else "not a Linear weight"
    if len(info.shape) != 2:
        return {0: "scalar", 1: "vector"}.get(len(info.shape), "convolution or table")
    if info.items == 0:
        return "empty"
    if info.dtype not in FLOATS:
        return f"dtype {info.dtype} is not a floating-point weight"
    return ""
