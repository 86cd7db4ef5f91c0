"""What happens to every tensor of a checkpoint, decided and explained before the first byte is read."""

import re
from dataclasses import dataclass

from .dtypes import FLOATS, byte_count
from .errors import TpecError
from .families import CUSTOM, DROP, KEEP, QUANTIZE, Detection, Family, detect
from .header import TensorInfo
from .settings import Settings
from .source import Source

_QUANTIZED_NAMES = re.compile(
    r"(^|\.)(scaled_fp8|weight_scale|scale_weight|comfy_quant|qweight|qzeros|g_idx|SCB|weight_format)$"
    r"|\.weight\.(absmax|quant_map|quant_state)")
_LOW_BIT = ("F8_", "F4", "F6_")


@dataclass(frozen=True)
class LayerPlan:
    """One tensor's fate. `local` is its name without the file's prefix."""

    info: TensorInfo
    local: str
    action: str
    reason: str

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def dtype(self) -> str:
        return self.info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def layer(self) -> str:
        """The Linear's name in the file: the tensor's without '.weight'."""
        return self.name.removesuffix(".weight")

    @property
    def local_layer(self) -> str:
        """The Linear's name in the model, without the file's prefix: the key of calibration data."""
        return self.local.removesuffix(".weight")


@dataclass(frozen=True)
class Plan:
    """A checkpoint, the settings, what was detected and every tensor's fate, in file order."""

    checkpoint: Source
    settings: Settings
    family: Family
    prefix: str
    why: str
    layers: tuple[LayerPlan, ...]

    def of(self, action: str) -> tuple[LayerPlan, ...]:
        return tuple(layer for layer in self.layers if layer.action == action)

    @property
    def kind(self) -> str:
        """ComfyUI's model folder for the result."""
        if self.prefix and any(not layer.name.startswith(self.prefix) for layer in self.layers):
            return "checkpoints"
        return self.family.kind

    @property
    def output_nbytes(self) -> int:
        """Bytes of tensor data in the result, scales and markers not counted."""
        return sum(layer.info.items if layer.action == QUANTIZE else layer.info.nbytes
                   for layer in self.layers if layer.action != DROP)

    def summary(self) -> str:
        """A few lines for people: what was detected, what happens, how large the result is."""
        quantized, kept, dropped = self.of(QUANTIZE), self.of(KEEP), self.of(DROP)
        before, after = self.checkpoint.nbytes, self.output_nbytes
        lines = [
            f"{self.checkpoint.name}: {self.why}",
            f"{len(quantized)} Linear layers become FP8, {len(kept)} tensors stay as they are"
            + (f", {len(dropped)} are dropped" if dropped else ""),
            f"{before / 1e9:.3f} GB -> {after / 1e9:.3f} GB ({after / before:.2f} x), format {self.settings.format}",
        ]
        return "\n".join(lines)

    def table(self) -> str:
        """One line per tensor: action, dtype, shape, name, reason."""
        return "\n".join(
            f"{layer.action:8} {layer.dtype:5} {'x'.join(map(str, layer.shape)) or 'scalar':>14}  {layer.name}  "
            f"({layer.reason})" for layer in self.layers)


def make_plan(checkpoint: Source, settings: Settings) -> Plan:
    """Decide every tensor's fate from header and settings. Raises TpecError for anything that must not be quantized."""
    wanted = settings.family
    if settings.t5xxl:
        if wanted not in ("auto", "t5xxl"):
            raise TpecError(f"--t5xxl and family '{wanted}' contradict each other: give one of them.")
        wanted = "t5xxl"
    _refuse_quantized_metadata(checkpoint)
    _refuse_unknown_dtypes(checkpoint)
    try:
        found = detect(checkpoint.name, checkpoint.tensors, wanted, settings.include)
    except TpecError:
        # A quantized file of an unknown family is better told that it is quantized.
        _refuse_quantized(checkpoint, "")
        raise
    _refuse_quantized(checkpoint, found.prefix)
    layers = tuple(_decide(info, found, settings) for info in checkpoint.tensors.values())
    if not any(layer.action == QUANTIZE for layer in layers):
        raise TpecError(f"In {checkpoint.name} no layer is left to quantize: check the include and exclude patterns.")
    return Plan(checkpoint, settings, found.family, found.prefix, found.why, layers)


def _refuse_quantized_metadata(checkpoint: Source) -> None:
    if "_quantization_metadata" in checkpoint.metadata:
        raise TpecError(f"{checkpoint.name} is quantized already (its header says so): use the bf16 or fp16 original.")


def _refuse_unknown_dtypes(checkpoint: Source) -> None:
    for name, info in checkpoint.tensors.items():
        if byte_count(info.dtype, info.shape) is None:
            raise TpecError(f"Tensor '{name}' of {checkpoint.name} has dtype {info.dtype}, which is not known here: "
                            "update this program, or use a bf16 or fp16 file.")


def _refuse_quantized(checkpoint: Source, prefix: str) -> None:
    for name, info in checkpoint.tensors.items():
        if not name.startswith(prefix):
            continue
        low = info.dtype.startswith(_LOW_BIT) or (
            name.endswith(".weight") and len(info.shape) == 2 and info.dtype in ("I8", "U8"))
        if low or _QUANTIZED_NAMES.search(name):
            raise TpecError(f"{checkpoint.name} is quantized already (tensor '{name}' is {info.dtype}): quantizing it "
                            "again would ruin it, use the bf16 or fp16 original.")


def _decide(info: TensorInfo, found: Detection, settings: Settings) -> LayerPlan:
    prefix = found.prefix
    if not info.name.startswith(prefix):
        return LayerPlan(info, info.name, KEEP, f"not part of the {found.family.title}")
    local = info.name[len(prefix):]
    action, reason = _action(info, local, found.family, settings)
    return LayerPlan(info, local, action, reason)


def _action(info: TensorInfo, local: str, family: Family, settings: Settings) -> tuple[str, str]:
    rule = next((rule for rule in family.rules if re.match(rule.pattern, local)
                 and (not rule.when or getattr(settings, rule.when))), None)
    if rule and rule.action == DROP:
        return DROP, rule.reason
    unfit = _unfit(info, local)
    if unfit:
        return KEEP, unfit
    if settings.exclude and re.search(settings.exclude, info.name):
        return KEEP, "excluded by you"
    if settings.include and re.search(settings.include, info.name):
        return QUANTIZE, "included by you"
    if rule:
        return rule.action, rule.reason
    return KEEP, "not named by include" if family is CUSTOM else "not a layer of a block"


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
