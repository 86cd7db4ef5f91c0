"""From a loaded model to a calibration: its Linear layers, the statistics of their inputs, and a file of them."""

import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import comfy.model_management as memory
import torch

from ..tpec.calibration import Calibration, merge
from ..tpec.calibration_file import load_calibration, save_calibration
from ..tpec.collect import CollectionPlan, Collector, join_passes, plan_collection
from ..tpec.errors import TpecError
from ..tpec.outputs import OutputStats
from .bridge import NodeProgress
from .handles import CalibrationHandle
from .paths import temp_folder

log = logging.getLogger(__name__)

Layers = Mapping[str, torch.nn.Module]

#: Of the free memory, this share may hold statistics.
_SHARE = 0.6
_numbers = itertools.count(1)


def linear_layers(root: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Linear modules by name, ComfyUI's quantized ones too, which are no torch Linear: [out, in] weights, one input."""
    return {name: module for name, module in root.named_modules()
            if hasattr(module, "in_features") and getattr(getattr(module, "weight", None), "ndim", 0) == 2}


def plan_for(layers: Layers, patcher, outputs: bool = False) -> CollectionPlan:
    """Where the statistics of a ModelPatcher's layers are kept, and in how many passes they are collected."""
    if not layers:
        raise TpecError("The model has no Linear layers that statistics could be collected of.")
    device, cpu = patcher.load_device, torch.device("cpu")
    widths = {name: module.in_features for name, module in layers.items()}
    rows = {name: module.out_features for name, module in layers.items()} if outputs else {}
    beside = patcher.model_size() + memory.minimum_inference_memory()
    on_device = 0 if memory.is_device_cpu(device) else memory.get_total_memory(device) - beside
    plan = plan_collection(widths, device, int(_SHARE * max(0, on_device)), int(_SHARE * memory.get_free_memory(cpu)),
                           rows)
    log.info("TPEC: %s", plan.text())
    if plan.device != cpu:
        memory.free_memory(plan.nbytes + beside, device)
    return plan


def collect(plan: CollectionPlan, layers: Layers, source: str, runs: int,
            run: Callable[[Collector, Layers], Mapping[str, OutputStats]]) -> Calibration:
    """Statistics of the layers' inputs during `run(collector, layers of the pass)`, once per pass.

    `run` returns what it learned of the layers' outputs. The layers are as before afterwards, also after an error.
    """
    shapes = {name: (module.out_features, module.in_features) for name, module in layers.items()}
    parts = []
    for names in plan.passes:
        watched = {name: layers[name] for name in names}
        with Collector(watched, plan.device) as collector:
            outputs = run(collector, watched)
        parts.append(replace(collector.finish(shapes, source, runs), outputs=outputs))
    return join_passes(parts)


def finish(calibration: Calibration, earlier: CalibrationHandle | None, layers: Layers,
           progress: NodeProgress) -> CalibrationHandle:
    """Add to an earlier calibration, write the file into ComfyUI's temp folder and describe it."""
    if earlier is not None:
        calibration = merge(load_calibration(earlier.file()), calibration)
    path = temp_folder("calibrations") / f"calibration-{next(_numbers)}.safetensors"
    progress.text(f"writing {calibration.nbytes / 1e6:.0f} MB of statistics", always=True)
    save_calibration(calibration, path, overwrite=True)
    return CalibrationHandle(path, describe(calibration, set(layers)))


def describe(calibration: Calibration, layers: set[str]) -> str:
    """The summary, and which layers saw nothing."""
    unseen = sorted(layers - set(calibration.layers))
    if not unseen:
        return calibration.summary()
    names = ", ".join(unseen[:8]) + (", ..." if len(unseen) > 8 else "")
    return f"{calibration.summary()}\n{len(unseen)} layers saw no input and are rounded without calibration: {names}"
