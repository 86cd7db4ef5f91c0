"""Results in ComfyUI's temp folder: made once per content, made again when gone, oldest removed when space is short."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ..tpec import __version__
from ..tpec.calibration_file import open_calibration
from ..tpec.errors import TpecError
from ..tpec.estimate import estimate
from ..tpec.pipeline import quantize
from ..tpec.plan import Plan, make_plan
from ..tpec.report import Report
from .bridge import torch_devices, with_cpu_fallback
from .handles import QuantizedHandle, QuantizeRequest
from .paths import temp_folder
from .saved import file_state

Progress = Callable[[object], None]

#: Finished results of this process by content key; ComfyUI empties the temp folder when it starts and ends.
_made: dict[str, tuple[QuantizedHandle, tuple[int, int]]] = {}


def _content_key(request: QuantizeRequest) -> str:
    """A hash of all that decides the result's bytes. Raises TpecError when the source or a device is gone."""
    checkpoint, calibration, structure = request.source.checkpoint, request.calibration, request.source.structure
    try:
        source = checkpoint.identity()
    except OSError as error:
        raise TpecError(f"{checkpoint.name} cannot be read any more: {error.strerror}.") from None
    facts = [__version__, str(checkpoint.path), source, asdict(request.settings), torch_devices(request.device),
             structure and [structure.name, *sorted(structure.linears)],
             calibration and [str(calibration.path), file_state(calibration.path)]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def quantized(request: QuantizeRequest, progress: Progress) -> QuantizedHandle:
    """The result of `request`, from the temp folder when it is there and whole, else computed now."""
    key = _content_key(request)
    known = _made.get(key)
    if known and file_state(known[0].path) == known[1]:
        return known[0]
    plan = make_plan(request.source.checkpoint, request.settings, request.source.structure)
    folder = temp_folder("results")
    _make_room(folder, plan)
    handle = _compute(request, key, plan, folder / f"{_stem(plan)}-{key}.safetensors", progress)
    _made[key] = handle, file_state(handle.path)
    return handle


def whole(handle: QuantizedHandle, progress: Progress) -> QuantizedHandle:
    """`handle` itself, or its result made again when somebody emptied the temp folder."""
    if handle.path.is_file():
        return handle
    return quantized(handle.request, progress)


def _compute(request: QuantizeRequest, key: str, plan: Plan, output: Path, progress: Progress) -> QuantizedHandle:
    calibration = open_calibration(request.calibration.file()) if request.calibration else None

    def need(device: torch.device) -> int:
        return estimate(plan, device, calibration).device

    def work(devices: Sequence[torch.device]) -> Report:
        return quantize(plan, output, devices=devices, calibration=calibration, progress=progress, overwrite=True)

    report, note = with_cpu_fallback(torch_devices(request.device), need, work)
    return QuantizedHandle(output, key, request, report, (note,) if note else ())


def _stem(plan: Plan) -> str:
    name = plan.checkpoint.name
    for suffix in (".safetensors.index.json", ".safetensors", ".sft"):
        name = name.removesuffix(suffix)
    return name


def _make_room(folder: Path, plan: Plan) -> None:
    """Remove the oldest results while the disk has too little room for the next; the engine says so if it still has."""
    finished = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    for path in finished:
        if shutil.disk_usage(folder).free > plan.output_nbytes * 1.02:
            return
        path.unlink(missing_ok=True)
