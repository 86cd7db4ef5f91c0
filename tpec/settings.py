"""What the user asks for, checked before anything is read."""

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from .errors import TpecError

Method = Literal["tpec", "nearest"]
Format = Literal["universal", "comfy_quant", "scaled_fp8"]
#: Of single layers; `auto` chooses between them layer by layer.
LayerMatmul = Literal["full_precision", "fp8"]
Matmul = Literal["full_precision", "fp8", "auto"]

METHODS: tuple[Method, ...] = get_args(Method)
FORMATS: tuple[Format, ...] = get_args(Format)
LAYER_MATMULS: tuple[LayerMatmul, ...] = get_args(LayerMatmul)
MATMULS: tuple[Matmul, ...] = get_args(Matmul)


@dataclass(frozen=True)
class Settings:
    """One quantization job's choices; `top_k` and `num_iter` None mean the method's own defaults.

    `include` and `exclude` are regular expressions searched in tensor names. `part` names text encoders of a full
    checkpoint to quantize besides the diffusion model; `only_part` leaves everything else out of the result.
    `keep_nonfinite` copies parameters that hold NaN or infinite values instead of refusing the file. `keep_quality` is
    extra size, in percent of the result's, spent on keeping the layers that matter most. `embeddings` makes token
    embeddings FP8 as well, where ComfyUI applies their scale. Raises TpecError on a bad value.
    """

    family: str = "auto"
    method: Method = "tpec"
    format: Format = "universal"
    matmul: Matmul = "full_precision"
    keep_distillation: bool = False
    t5xxl: bool = False
    top_k: int | None = None
    num_iter: int | None = None
    include: str = ""
    exclude: str = ""
    keep_nonfinite: bool = False
    part: tuple[str, ...] = ()
    only_part: bool = False
    keep_quality: float = 0.0
    embeddings: bool = False

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("format", self.format, FORMATS)
        _one_of("matmul", self.matmul, MATMULS)
        if self.top_k is not None and self.top_k < 1:
            raise TpecError(f"top_k is {self.top_k}: it must be at least 1.")
        if self.num_iter is not None and self.num_iter < 0:
            raise TpecError(f"num_iter is {self.num_iter}: it must be 0 or more.")
        if not 0 <= self.keep_quality <= 90:
            raise TpecError(f"keep_quality is {self.keep_quality:g}: it must be a percentage from 0 to 90.")
        if self.embeddings and self.format != "comfy_quant":
            raise TpecError(f"Embeddings in FP8 need the format comfy_quant, not {self.format}: versions of ComfyUI "
                            "that read the older form do not apply their scale; choose comfy_quant, or leave "
                            "embeddings as they are.")
        from .patterns import check_pattern  # not needed for the defaults, which ComfyUI's start asks for

        check_pattern("include", self.include)
        check_pattern("exclude", self.exclude)

    def recipe(self) -> dict[str, object]:
        """The choices that differ from the defaults or name the method, for the file's metadata."""
        always = ("method", "format", "matmul")
        default = Settings()
        return {name: value for name, value in asdict(self).items()
                if name in always or value != getattr(default, name)}


def part_names(text: str) -> tuple[str, ...]:
    """The names in a list separated by commas, as `Settings.part` wants them."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise TpecError(f"{name} is '{value}': it must be one of {', '.join(allowed)}.")
