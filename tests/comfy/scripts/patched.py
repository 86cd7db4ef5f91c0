"""Weights of patched models in every state that ComfyUI keeps them in: prints one line per promise that is kept."""

import copy
import gc
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import comfy.memory_management
import comfy.model_base
import comfy.model_management as memory
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy_aimdo.host_buffer
import torch
from pack.nodes.host import baking
from pack.nodes.host.graph_model import graph_model
from pack.tpec.errors import TpecError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import models  # noqa: E402

FLUX = models.flux(hidden=128)
LORA = models.lora(FLUX)
#: A weight so small that ComfyUI's dynamic loading keeps it loaded, patched.
SMALL = "diffusion_model.double_blocks.0.img_attn.norm.key_norm.weight"


class NoPins:
    """Pinned memory needs a GPU; nothing here asks for its content."""

    size = 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def truncate(self, *_: object, **__: object) -> None:
        pass


class Dynamic(comfy.model_patcher.ModelPatcherDynamic):
    """ComfyUI's own, on the CPU too, for which it takes the other one."""

    def __new__(cls, *_: object, **__: object) -> "Dynamic":
        return object.__new__(cls)


def load() -> comfy.model_patcher.ModelPatcher:
    return comfy.sd.load_diffusion_model_state_dict(copy.copy(FLUX))


def with_lora(model, strength: float):
    patched = comfy.sd.load_lora_for_models(model, None, LORA, strength, 0)[0]
    patched.add_patches({SMALL: ("diff", (torch.full((128,), 0.5),))}, strength)
    return patched


def keys(model) -> list[str]:
    return [f"{baking.ROOT}{name}" for name in model.model.diffusion_model.state_dict()]


def own(model) -> dict[str, torch.Tensor]:
    """ComfyUI's own patched weights, right as long as the model is not loaded."""
    return {key: model.patch_weight_to_device(key, device_to=model.load_device, return_weight=True).clone()
            for key in keys(model)}


def same(model, wanted: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(baking.baked(model, key), weight) for key, weight in wanted.items())


def check_states(name: str) -> None:
    model = load()
    patched, other = with_lora(model, 0.8), with_lora(model, -2.0)
    wanted = own(patched)
    if not same(patched, wanted):
        return
    for loaded in (patched, model, other, patched):
        loaded.load(device_to=loaded.load_device)
        if not same(patched, wanted):
            return
        if loaded is not patched and loaded.is_dynamic():
            loaded.restore_loaded_backups()
        elif not loaded.is_dynamic():
            loaded.unpatch_model(loaded.offload_device)
    print(name, "in every state")


check_states("static")
comfy.memory_management.aimdo_enabled, comfy_aimdo.host_buffer.HostBuffer = True, NoPins
static, comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.CoreModelPatcher, Dynamic
check_states("dynamic")
model = with_lora(load(), 0.8)
before = own(model)
model.load(device_to=model.load_device)
if not torch.equal(own(model)[SMALL], before[SMALL]):
    print("where weights that stay loaded carry the patch already")
comfy.memory_management.aimdo_enabled, comfy.model_patcher.CoreModelPatcher = False, static

model = load()
partly = with_lora(model, 0.8)
wanted = own(partly)
partly.load(device_to=partly.load_device, lowvram_model_memory=2_000_000)
if any(getattr(module, "weight_function", None) for module in partly.model.modules()) and partly.backup:
    if same(partly, wanted):
        print("partly loaded")
partly.unpatch_model(partly.offload_device)

handle = graph_model(partly)
if comfy.model_patcher.is_model_patcher_output(handle) and not comfy.model_patcher.is_model_patcher_output(
        handle.lasting()):
    print("ComfyUI knows the handle for a model")
key = handle.checkpoint.identity()
if key == graph_model(partly.clone()).checkpoint.identity() and key not in (
        graph_model(model).checkpoint.identity(), graph_model(with_lora(model, 0.8)).checkpoint.identity(),
        graph_model(with_lora(load(), 0.8)).checkpoint.identity()):
    print("another identity for other patches and other models")

kept, alive = handle.lasting(), weakref.ref(partly.model)
del handle, partly, model
gc.collect()
try:
    kept.checkpoint.reader()
except TpecError as error:
    if alive() is None and str(error).endswith("run again."):
        print("results hold no model")

model = load()
wide = torch.zeros(128, 96, dtype=torch.bfloat16)
model.add_patches({"diffusion_model.img_in.weight": ("diff", (wide, {"pad_weight": True}))})
info = graph_model(model).checkpoint.tensors["model.diffusion_model.img_in.weight"]
if info.shape == (128, 96) and baking.baked(model, "diffusion_model.img_in.weight").shape == (128, 96):
    print("padded weights")

model = with_lora(load(), 0.8)
wanted = own(model)
model.load_device, cast = torch.device("cuda"), memory.cast_to_device
memory.lora_compute_dtype = lambda device: torch.float32


def full(tensor: torch.Tensor, device: torch.device, *more: object, **options: object) -> torch.Tensor:
    if device.type == "cuda":
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return cast(tensor, device, *more, **options)


memory.cast_to_device = full
if same(model, wanted):
    print("without VRAM on the CPU")
memory.cast_to_device, model.load_device = cast, torch.device("cpu")


class Sampling(comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.V_PREDICTION):
    pass


velocity = SimpleNamespace(model=SimpleNamespace(model_type=comfy.model_base.ModelType.V_PREDICTION), zsnr=True,
                           get_model_object=lambda name: SAMPLING)
SAMPLING = Sampling()
SAMPLING.zsnr = True
if sorted(baking._sampling_keys(velocity)) == ["edm_vpred.sigma_max", "edm_vpred.sigma_min", "ztsnr"]:
    print("keys of v-prediction models")
