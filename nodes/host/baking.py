"""The weights of a ComfyUI model with its patches (LoRAs, merges, weight patches), computed one by one.

A tensor comes out as ComfyUI itself computes it when it loads the model completely or saves it
(`ModelPatcher.patch_weight_to_device`): on the same device, in the same dtype, from the weight without any patches.
That one is looked up wherever ComfyUI keeps it, so that it does not matter what of the model is loaded, or with whose
patches.
"""

import logging
import threading
from collections.abc import Callable, Iterator

import comfy.float
import comfy.lora
import comfy.model_base
import comfy.model_management as memory
import comfy.model_patcher
import comfy.model_sampling
import comfy.utils
import torch

from ...tpec.errors import TpecError, is_out_of_memory

log = logging.getLogger(__name__)

#: The diffusion model's name within ComfyUI's model.
ROOT = "diffusion_model."
#: Float32 copies of a weight alive while it is patched: the weight, the patch, its product, the result.
_COPIES = 4
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_QUANTIZED_KEYS = ("comfy_quant", "weight_scale", "scale_weight", "scaled_fp8")
#: One weight at a time, whatever the number of lanes: memory stays flat.
_one_at_a_time = threading.Lock()


def original(patcher, key: str) -> torch.Tensor:
    """The weight `key` (named within ComfyUI's model) without patches."""
    for kept in (getattr(patcher, "backup", {}), getattr(patcher, "hook_backup", {})):
        if key in kept:
            return kept[key][0]
    buffers = getattr(patcher, "backup_buffers", {})
    if key in buffers:
        return buffers[key]
    return comfy.model_patcher.get_key_weight(patcher.model, key)[0]


def baked_shape(patcher, key: str) -> tuple[int, ...]:
    """The shape with the patches, some of which pad a weight."""
    weight = original(patcher, key)
    patches = patcher.patches.get(key)
    if not patches or not hasattr(comfy.lora, "calculate_shape"):
        return tuple(weight.shape)
    return tuple(comfy.lora.calculate_shape(patches, weight, key))


@torch.inference_mode()
def baked(patcher, key: str) -> torch.Tensor:
    """The weight with the patches, on any device; the model's own tensor where there are none."""
    weight = original(patcher, key)
    if weight.is_meta:
        raise TpecError(f"The model in the graph has no values for '{key.removeprefix(ROOT)}': the file it was loaded "
                        "from is incomplete, download it again.")
    if not patcher.patches.get(key):
        return weight
    with _one_at_a_time:
        try:
            return _patched(patcher, key, weight, patcher.load_device).cpu()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or memory.is_device_cpu(patcher.load_device):
                raise
            log.warning("TPEC: out of memory while patching %s, going on with the CPU.", key)
        memory.soft_empty_cache()
        return _patched(patcher, key, weight, torch.device("cpu"))


def _patched(patcher, key: str, weight: torch.Tensor, device: torch.device) -> torch.Tensor:
    _, set_weight, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    work = memory.cast_to_device(weight, device, memory.lora_compute_dtype(device), copy=True)
    if convert is not None:
        work = convert(work, inplace=True)
    result = comfy.lora.calculate_weight(patcher.patches[key], work, key)
    seed = comfy.utils.string_to_seed(key)
    if set_weight is None:
        return comfy.float.stochastic_rounding(result, weight.dtype, seed=seed)
    return set_weight(result, inplace_update=False, seed=seed, return_weight=True)


def room_for(patcher) -> dict[torch.device, int]:
    """Bytes that computing the largest of the patched weights takes beside the model, and where."""
    sizes = [original(patcher, key).numel() for key in patcher.patches]
    return {patcher.load_device: 4 * _COPIES * max(sizes)} if sizes else {}


def refuse_quantized(patcher) -> None:
    """Raises TpecError if a weight, or one of a model that was merged in, is quantized."""
    for key in _keys(patcher):
        name = key.removeprefix(ROOT)
        if name.endswith(_QUANTIZED_KEYS):
            raise _quantized("The model in the graph", name, "a part of a quantized layer")
        _refuse_quantized("The model in the graph", name, original(patcher, key))
        for other in _merged(patcher.patches.get(key, ())):
            _refuse_quantized("A model that was merged in", name, other)


def _refuse_quantized(model: str, name: str, weight: torch.Tensor) -> None:
    if type(weight) not in _PLAIN:
        raise _quantized(model, name, type(weight).__name__)
    if weight.dtype.itemsize == 1 and weight.dtype != torch.bool and weight.ndim > 1:
        raise _quantized(model, name, str(weight.dtype).removeprefix("torch."))


def _quantized(model: str, name: str, what: str) -> TpecError:
    return TpecError(f"{model} is quantized already ('{name}' is {what}): quantizing it again would ruin it. Load the "
                     "bf16 or fp16 original, with weight_dtype 'default'.")


def _merged(patches: list[tuple]) -> Iterator[torch.Tensor]:
    """The weights of other models that a weight's patches, as ModelPatcher keeps them, mix in."""
    for patch in patches:
        if isinstance(patch[1], list):
            yield patch[1][0][0]
            yield from _merged(patch[1][1:])


def _keys(patcher) -> list[str]:
    """The names of the diffusion model's weights within ComfyUI's model."""
    with patcher.use_ejected():
        # torch.compile and the like stand in for the model while it is loaded.
        root = patcher.object_patches_backup.get(ROOT[:-1], patcher.model.diffusion_model)
        return [f"{ROOT}{name}" for name in root.state_dict()]


def saved_names(patcher) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The names under which ComfyUI saves the model's weights, with their keys, and what it adds to them.

    Raises TpecError where ComfyUI does more to this model's weights than naming them.
    """
    # Without values, so that whatever is computed from them is noticed.
    stand_ins = {key.removeprefix(ROOT): torch.empty(baked_shape(patcher, key), device="meta")
                 for key in _keys(patcher)}
    waiting = {id(tensor): f"{ROOT}{name}" for name, tensor in stand_ins.items()}
    names, added = {}, {}
    for name, tensor in patcher.model.state_dict_for_saving(dict(stand_ins)).items():
        key = waiting.pop(id(tensor), None)
        if key is not None:
            names[name] = key
        elif tensor.is_meta:
            raise _unknown_saving(patcher, name)
        else:
            added[name] = tensor
    if waiting:
        raise _unknown_saving(patcher, next(iter(waiting.values())).removeprefix(ROOT))
    return names, added | _sampling_keys(patcher)


def _unknown_saving(patcher, name: str) -> TpecError:
    return TpecError(f"ComfyUI rearranges the weights of {type(patcher.model).__name__} when it saves them ('{name}'), "
                     "which is not known here: save the model with ModelSave and load that file instead.")


def _sampling_keys(patcher) -> dict[str, torch.Tensor]:
    """What ModelSave adds for v-prediction models, by which the loaders know them."""
    sampling, added = patcher.get_model_object("model_sampling"), {}
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION) and isinstance(
            sampling, comfy.model_sampling.ModelSamplingContinuousEDM):
        added |= {f"edm_vpred.sigma_{end}": torch.as_tensor(getattr(sampling, f"sigma_{end}")).float()
                  for end in ("max", "min")}
    if patcher.model.model_type == comfy.model_base.ModelType.V_PREDICTION and getattr(sampling, "zsnr", False):
        added["ztsnr"] = torch.tensor([])
    return added


Computation = Callable[[str], torch.Tensor]


def computation(patcher) -> Computation:
    """A function from a tensor's name in the saved file to the tensor."""
    names, added = saved_names(patcher)
    return lambda name: added[name] if name in added else baked(patcher, names[name])
