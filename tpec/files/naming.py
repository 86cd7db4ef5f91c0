"""What names say: which files are models, which are shards of one, and what a result is called."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import TpecError
from .replace import is_folder

#: How names of safetensors files end, in any case; ComfyUI lists both.
SUFFIXES = (".safetensors", ".sft")
#: Endings of other formats: a safetensors file must not be called so, as readers go by the name.
_OTHER_FORMATS = frozenset({".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".ggml", ".onnx", ".npz", ".npy",
                            ".h5", ".msgpack", ".zip", ".json", ".engine", ".pb", ".tflite"})
#: Where diffusers pipelines have their diffusion model, and what it is called there, whatever it is.
DIFFUSION_FOLDERS = ("transformer", "unet")
_NAMELESS = "diffusion_pytorch_model"
_SHARD = r"(.+)-(\d{5})-of-(\d{5})((?:\.[^.]+)?(?:\.safetensors|\.sft))"
# Superscript digits are digits there, and what follows a space or dot does not count.
_DEVICE = r"(con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *([.:].*)?"


class ShardName(NamedTuple):
    """A name like model-00002-of-00003.safetensors: `number` 2 of `total` 3."""

    stem: str
    number: int
    total: int
    ending: str

    def sibling(self, number: int) -> str:
        """The name of another shard of the same model."""
        return f"{self.stem}-{number:05d}-of-{self.total:05d}{self.ending}"


def is_model_name(name: str) -> bool:
    """Whether a file of this name is meant to be safetensors."""
    return name.lower().endswith(SUFFIXES)


def is_device(part: str) -> bool:
    """Whether Windows takes this name for a device, whatever the folder."""
    return re.fullmatch(_DEVICE, part.rstrip(". "), re.IGNORECASE | re.DOTALL) is not None


def is_bare_name(name: str) -> bool:
    """Whether a name of an existing file is that of a file in the same folder, by every system's rules."""
    return (name not in ("", ".", "..") and not re.search(r"[/\\:\x00]", name) and not is_device(name))


def shard_name(name: str) -> ShardName | None:
    """The parts of a shard's name; None for a whole file, also for the only shard of one."""
    # Few names are, so that most lists of files need no regular expression.
    match = re.fullmatch(_SHARD, name, re.IGNORECASE) if "-of-" in name.lower() else None
    if match is None or int(match[3]) < 2:
        return None
    return ShardName(match[1], int(match[2]), int(match[3]), match[4])


def model_stem(name: str) -> str:
    """The model's own name: without suffix, a shard's number, or what makes it the name of an index.

    diffusion_pytorch_model.safetensors.index.fp16.json -> diffusion_pytorch_model.fp16
    """
    if name.lower().endswith(".json"):
        first, *parts = name[:-len(".json")].split(".")
        return ".".join([first, *(part for part in parts if part.lower() not in ("index", "safetensors", "sft"))])
    shard = shard_name(name)
    if shard:
        name = shard.stem + shard.ending
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[:len(name) - len(suffix)]


def default_output(source: Path, keep_distillation: bool) -> Path:
    """`model.safetensors` -> `model_float8_e4m3fn_scaled_learned[_nodistill]_svd.safetensors`, in the same folder.

    `source` may be a folder or an index as well. The name is that of the published TPEC script. A file of a diffusers
    pipeline, where all have one name, is called by the pipeline's folder:
    `FLUX.1-dev/transformer/diffusion_pytorch_model.safetensors` -> `FLUX.1-dev_float8...`. Raises TpecError where the
    disk does not say what `source` is.
    """
    folder, stem = source.parent, model_stem(source.name)
    if is_folder(source):
        folder, stem = source, _named_by(source)
    elif stem.partition(".")[0] == _NAMELESS:
        stem = (_named_by(source.parent) or _NAMELESS) + stem.removeprefix(_NAMELESS)
    distilled = "_nodistill" if keep_distillation else ""
    return folder / f"{stem}_float8_e4m3fn_scaled_learned{distilled}_svd.safetensors"


def _named_by(folder: Path) -> str:
    """A folder's name, for that of a pipeline's diffusion model the pipeline's."""
    folder = folder.resolve()
    return (folder.name in DIFFUSION_FOLDERS and folder.parent.name) or folder.name


def is_default_output(name: str) -> bool:
    """Whether `default_output` gives such names."""
    return re.search(r"_float8_e4m3fn_scaled_learned(_nodistill)?_svd\.safetensors$", name) is not None


def named_output(given: str) -> Path:
    """The file that a user's name for a result means: it ends in .safetensors or .sft, so that readers know it.

    Raises TpecError for the ending of another format, and for a shard's name.
    """
    path = Path(given)
    if shard_name(path.name):
        raise TpecError(f"{path} is the name of one shard of several, and the result is one file: choose another name.")
    if is_model_name(path.name):
        return path
    if path.suffix.lower() in _OTHER_FORMATS:
        raise TpecError(f"{path} would be a safetensors file with the name of another format, which no program loads: "
                        "end the name in .safetensors.")
    return path.with_name(path.name + SUFFIXES[0])


def names_folder(given: str) -> bool:
    """Whether a user's name for the result means a folder: one that is there, or a name that ends in a slash.

    Raises TpecError where the disk does not say what it is.
    """
    return is_folder(given, "written") or given.endswith(("/", "\\") if os.name == "nt" else "/")


def refuse_shared_outputs(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Raises TpecError when two of a batch's results have one name, or one has the name of an input."""
    seen: dict[str, int] = {}
    for at, output in enumerate(outputs):
        first = seen.setdefault(_same_file_key(output), at)
        if first != at:
            raise TpecError(f"The results of {inputs[first]} and {inputs[at]} would have the same name, and {output} "
                            "can hold one only: quantize them one by one, with -o.")
    read = {_same_file_key(source) for source in inputs}
    for source, output in zip(inputs, outputs, strict=True):
        if len(inputs) > 1 and _same_file_key(output) in read:
            raise TpecError(f"The result of {source} would be written as {output}, which is an input itself: "
                            "quantize it alone, with -o.")


def _same_file_key(path: Path) -> str:
    """Equal for names of one file, also where the system takes capitals for small letters."""
    real = os.path.realpath(path)
    return real.casefold() if sys.platform in ("win32", "darwin") else real
