"""What the installed ComfyUI would build from a file, asked of ComfyUI itself: which tensors it gives a scale.

Its own detection and model classes run on torch's meta device with the operations that it uses for quantized files;
nothing is read but the header, nothing is loaded, and no weight takes memory.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_detection
import comfy.ops
import torch

from ...tpec.files.header import TensorInfo
from ...tpec.model.structure import Structure
from .encoders import encoder_structure
from .modules import Tensors, file_names, hollow, in_file, scaled_modules

log = logging.getLogger(__name__)

#: What ComfyUI's detection and its classes raise on files that are not theirs or lack a part.
FOREIGN = (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError)


def structure_of(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> Structure | None:
    """The modules whose scales this ComfyUI honours when it loads such a file; None for a file that it does not know.

    `tensors` and `metadata` are the header's. A diffusion model is looked for first, alone or in a full checkpoint,
    then a text encoder file. Names are the file's, without the diffusion model's prefix. What ComfyUI only renames on
    loading counts, what it splits, joins or reshapes does not.
    """
    with _unheard(), torch.random.fork_rng(devices=[]), torch.no_grad():
        return _known(lambda: _diffusion(tensors, metadata)) or _known(lambda: encoder_structure(hollow(tensors)))


def _known(ask: Callable[[], Structure | None]) -> Structure | None:
    try:
        return ask()
    except FOREIGN as error:
        log.debug("TPEC: this ComfyUI does not know the file (%s: %s).", type(error).__name__, error)
        return None


def _diffusion(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> Structure | None:
    state = hollow(tensors)
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
    config = comfy.model_detection.model_config_from_unet(state, prefix, metadata=dict(metadata))
    if config is None:  # not a full checkpoint: as ComfyUI loads files of diffusion_models
        inner = _under(prefix, state)
        state, prefix = inner or state, ""
        config = comfy.model_detection.model_config_from_unet(state, "", metadata=dict(metadata))
    if config is None:
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in _under(prefix, state).items()}
    found = scaled_modules(_built(config, state, prefix))
    return in_file(type(config).__name__, found, file_names(shapes, config.process_unet_state_dict), shapes)


def _under(prefix: str, state: Tensors) -> Tensors:
    return {name[len(prefix):]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def _built(config: Any, state: Tensors, prefix: str) -> torch.nn.Module:
    """The diffusion model's modules. Few constructors look at values, which meta tensors lack: those get the CPU, where
    the large weights do not exist either, since these operations make none before a file is loaded."""
    config.custom_operations = comfy.ops.mixed_precision_ops({}, torch.bfloat16)
    try:
        return config.get_model(dict(state), prefix, device=torch.device("meta")).diffusion_model
    except RuntimeError:
        return config.get_model(dict(state), prefix, device=torch.device("cpu")).diffusion_model


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep ComfyUI's remarks on loading out of the log: nothing is loaded. Other threads are heard."""
    here = threading.get_ident()

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != here

    root = logging.getLogger()
    root.addFilter(elsewhere)
    try:
        yield
    finally:
        root.removeFilter(elsewhere)
