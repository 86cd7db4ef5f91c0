"""From a loaded model to a calibration: its Linear layers, the statistics of their inputs, and a file of them."""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import comfy.model_management as memory
import torch

from ...tpec.device import workspaces_freed
from ...tpec.errors import TpecError
from ...tpec.model.roles import modulates
from ...tpec.statistics.calibration import Calibration, hash_layers, merge
from ...tpec.statistics.gradients import GradientStats
from ...tpec.statistics.storage import open_calibration, save_calibration
from ...tpec.statistics.watching import CollectionPlan, Collector, join_passes, plan_collection
from ...tpec.statistics.weights import sample_weights, sampled_layers
from ..handles import CalibrationHandle
from ..host.baking import baked
from ..host.memory import make_room
from ..host.paths import temp_folder
from ..host.progress import NodeProgress
from ..saving.temp_files import hold

log = logging.getLogger(__name__)

Layers = Mapping[str, torch.nn.Module]
Run = Callable[[Collector, Layers], Mapping[str, GradientStats]]

#: Of the free memory, this share may hold statistics.
_SHARE = 0.6
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_numbers = itertools.count(1)


def linear_layers(root: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Linear modules by name, ComfyUI's quantized ones too, which are no torch Linear: [out, in] weights, one input."""
    return {name: module for name, module in root.named_modules()
            if hasattr(module, "in_features") and getattr(getattr(module, "weight", None), "ndim", 0) == 2}


def refuse_quantized(layers: Layers) -> None:
    """Raises TpecError when any layer's weight is not in a plain floating-point format."""
    quantized = [name for name, module in layers.items() if _is_quantized(module)]
    if quantized:
        raise TpecError(f"This model is quantized already ({len(quantized)} of {len(layers)} layers, '{quantized[0]}' "
                        "first), and what its layers see has the errors of that: load the original in bf16, fp16 or "
                        "fp32 (with weight_dtype 'default') to calibrate.")


def _is_quantized(module: torch.nn.Module) -> bool:
    weight = module.weight
    # A quantized tensor of ComfyUI says the dtype that it stands for. With dynamic VRAM the weight is the file's, and
    # what weight_dtype says is done to it each time that it is used.
    plain, used = getattr(weight, "data", weight), getattr(module, "weight_comfy_model_dtype", None)
    dtypes = {weight.dtype, used or weight.dtype}
    return not dtypes <= set(_FLOATS) or hasattr(plain, "_qdata") or hasattr(weight, "_qdata")


def plan_for(layers: Layers, patcher, outputs: bool = False) -> CollectionPlan:
    """Where the statistics of a ModelPatcher's layers are kept, and in how many passes they are collected."""
    if not layers:
        raise TpecError("The model has no Linear layers that statistics could be collected of: use it "
                        "without a calibration.")
    device, cpu = patcher.load_device, torch.device("cpu")
    widths = {name: module.in_features for name, module in layers.items()}
    rows = {name: module.out_features for name, module in layers.items()} if outputs else {}
    vectors = {name for name in layers if modulates(name)}
    beside = patcher.model_size() + memory.minimum_inference_memory()
    on_device = 0 if memory.is_device_cpu(device) else _obtainable(device) - beside
    plan = plan_collection(widths, device, int(_SHARE * max(0, on_device)), int(_SHARE * memory.get_free_memory(cpu)),
                           rows, vectors)
    log.info("TPEC: %s", plan.text())
    if plan.device != cpu:
        make_room(plan.nbytes + beside, device)
    return plan


def _obtainable(device: torch.device) -> int:
    """Bytes that are free on a GPU once ComfyUI has unloaded its models; other programs keep what they have."""
    held = sum(loaded.model_loaded_memory() for loaded in memory.current_loaded_models
               if loaded.device == device and loaded.model is not None)
    return min(memory.get_total_memory(device), memory.get_free_memory(device) + held)


def calibrate(plan: CollectionPlan, layers: Layers, patcher, source: str, runs: int, run: Run,
              earlier: CalibrationHandle | None, progress: NodeProgress) -> CalibrationHandle:
    """Collect during `run(collector, layers of the pass)`, once per pass, and write a file into ComfyUI's temp folder.

    `run` returns what it learned of the layers' outputs. The layers are as before afterwards, also after an error. What
    an earlier calibration knows is added. Memory holds the sums of one pass and little else.
    """
    shapes = {name: (module.out_features, module.in_features) for name, module in layers.items()}
    # Of the devices beside the CPU only CUDA has all that writing takes.
    device = patcher.load_device if patcher.load_device.type == "cuda" else torch.device("cpu")
    known = open_calibration(earlier.file()) if earlier is not None else None
    if known is not None:
        known.refuse_other_model(hash_layers(shapes))
    folder = temp_folder("calibrations")
    path = folder / f"calibration-{next(_numbers)}.safetensors"

    def one_pass(names: tuple[str, ...]) -> Calibration:
        watched = {name: layers[name] for name in names}
        begun = time.monotonic()
        with Collector(watched, plan.device) as collector:
            outputs = run(collector, watched)
        log.info("TPEC: statistics of %d layers collected in %.0f s", len(names), time.monotonic() - begun)
        return replace(collector.finish(shapes, source, runs), outputs=outputs)

    # Windows cannot remove a file that something still has open; ComfyUI empties its temp folder when it starts.
    with workspaces_freed([patcher.load_device]), \
            TemporaryDirectory(prefix="passes-", dir=folder, ignore_cleanup_errors=True) as parts:
        found = _all_passes(plan, one_pass, Path(parts), progress, device)
        if known is not None:
            found = merge(known, found)
        found = replace(found, weights=_weights_of(patcher, layers, found.layers))
        _save(found, path, progress, device)
        summary = describe(found, set(layers))
        # Its files are closed with it.
        del found
    return CalibrationHandle(path, summary, hold(path))


def _weights_of(patcher, layers: Layers, seen: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """A few weights of the layers that were seen, with the patches of the ModelPatcher whose model has them."""
    names = {id(module): name for name, module in patcher.model.named_modules()}
    return sample_weights(sampled_layers(seen), lambda layer: baked(patcher, f"{names[id(layers[layer])]}.weight"))


def _all_passes(plan: CollectionPlan, one_pass: Callable[[tuple[str, ...]], Calibration], folder: Path,
                progress: NodeProgress, device: torch.device) -> Calibration:
    """Where there are several, each pass's statistics go to a file of their own, and its sums from memory."""
    if len(plan.passes) == 1:
        return one_pass(plan.passes[0])
    paths = [folder / f"{at}.safetensors" for at in range(len(plan.passes))]
    for names, path in zip(plan.passes, paths, strict=True):
        _save(one_pass(names), path, progress, device)
    return join_passes([open_calibration(path) for path in paths])


def _save(calibration: Calibration, path: Path, progress: NodeProgress, device: torch.device) -> None:
    def on_part(done: int, count: int) -> None:
        memory.throw_exception_if_processing_interrupted()
        progress.text(f"writing statistics, {done + 1} of {count}")

    begun = time.monotonic()
    save_calibration(calibration, path, overwrite=True, on_part=on_part, device=device)
    log.info("TPEC: statistics written in %.0f s", time.monotonic() - begun)


def describe(calibration: Calibration, layers: set[str]) -> str:
    """The summary, and which layers saw nothing."""
    unseen = sorted(layers - set(calibration.layers))
    if not unseen:
        return calibration.summary()
    names = ", ".join(unseen[:8]) + (", ..." if len(unseen) > 8 else "")
    return f"{calibration.summary()}\n{len(unseen)} layers saw no input and are rounded without calibration: {names}"
