"""What is to be quantized as ComfyUI runs it: loaded as the stock loaders do it, or the MODEL of the graph itself."""

import comfy.sd

from ...tpec.errors import TpecError, first_line, is_out_of_memory
from ..handles import CheckpointHandle
from .prompt_free import UNFIT


def loaded_model(handle: CheckpointHandle, kind: str):
    """The ModelPatcher of a diffusion model file, of a checkpoint's diffusion model, or of a MODEL.

    `kind` is ComfyUI's folder name for such a file. Raises TpecError when ComfyUI cannot load it.
    """
    if handle.patcher is not None:
        return handle.patcher
    path = _single_file(handle)
    try:
        if kind == "checkpoints":
            return comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]
        return comfy.sd.load_diffusion_model(path)
    except UNFIT as error:
        raise _unloadable(error) from error


def loaded_encoder(handle: CheckpointHandle):
    """The CLIP of a text encoder file. Raises TpecError when ComfyUI cannot load it."""
    path = _single_file(handle)
    try:
        return comfy.sd.load_clip([path])
    except UNFIT as error:
        raise _unloadable(error) from error


def _single_file(handle: CheckpointHandle) -> str:
    files = handle.checkpoint.files
    if len(files) != 1:
        raise TpecError(f"ComfyUI loads no model from {len(files)} files")
    return str(files[0])


def _unloadable(error: BaseException) -> BaseException:
    if is_out_of_memory(error):
        return error
    return TpecError(f"ComfyUI could not load it ({first_line(error)})")
