"""Results in ComfyUI's temp folder: made once per content, made again when gone.

What is in use and the latest stay; of these the oldest are removed when space is short.
"""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ...tpec.files.checkpoint import open_checkpoint
from ...tpec.files.naming import model_stem
from ...tpec.model.plan import Plan, make_plan
from ...tpec.model.recipe import follow
from ...tpec.model.template import recipe_like
from ...tpec.run.memory import estimate
from ...tpec.run.pipeline import quantize
from ...tpec.run.report import Report
from ...tpec.statistics.storage import open_calibration
from ...tpec.version import __version__
from ..handles import QuantizedHandle, QuantizeRequest
from ..saving.save_once import file_state
from ..saving.temp_files import Latest, hold
from .graph_model import baking_room
from .memory import torch_devices, with_cpu_fallback
from .paths import temp_folder

Progress = Callable[[object], None]

#: The last results by content key, so that running one of them again costs nothing.
_made: Latest[QuantizedHandle] = Latest(3, lambda handle: handle.temp)
#: A working file that nothing was written to for so many seconds is what a failed run left.
_ABANDONED = 600


def _content_key(request: QuantizeRequest) -> str:
    """A hash of all that decides the result's bytes. Raises TpecError when the source or a device is gone."""
    checkpoint, calibration, structure = request.source.checkpoint, request.calibration, request.source.structure
    facts = [__version__, checkpoint.name, [str(path) for path in checkpoint.files], checkpoint.identity(),
             asdict(request.settings), torch_devices(request.device),
             structure and [structure.name, *sorted(structure.linears)],
             calibration and [str(calibration.path), file_state(calibration.path)]]
    if request.like is not None:
        facts.append([str(request.like), file_state(request.like)])
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def quantized(request: QuantizeRequest, progress: Progress) -> QuantizedHandle:
    """The result of `request`, from the temp folder when it is there and whole, else computed now."""
    key = _content_key(request)
    known = _made.get(key)
    if known is not None:
        return known
    plan = plan_of(request)
    folder = temp_folder("results")
    output = folder / f"{model_stem(plan.checkpoint.name)}-{key}.safetensors"
    _make_room(output, round(plan.output_nbytes * (1 + request.settings.keep_quality / 100)))
    handle = _compute(request, key, plan, output, progress)
    _made.put(key, handle)
    return handle


def plan_of(request: QuantizeRequest) -> Plan:
    """What a request would do. Raises TpecError for what can be refused by the header and the settings."""
    structure = request.source.structure
    plan = make_plan(request.source.checkpoint, request.settings, structure)
    return plan if request.like is None else follow(plan, recipe_like(open_checkpoint(request.like)), structure)


def ensure_file(handle: QuantizedHandle, progress: Progress) -> QuantizedHandle:
    """`handle` itself, or its result made again when its file in the temp folder is gone or not what was made."""
    return handle if handle.temp.intact else quantized(handle.request, progress)


def _compute(request: QuantizeRequest, key: str, plan: Plan, output: Path, progress: Progress) -> QuantizedHandle:
    calibration = open_calibration(request.calibration.file()) if request.calibration else None

    def need(device: torch.device) -> int:
        return estimate(plan, device, calibration).device

    def work(devices: Sequence[torch.device]) -> Report:
        return quantize(plan, output, devices=devices, calibration=calibration, progress=progress, overwrite=True)

    report, note = with_cpu_fallback(torch_devices(request.device), need, work, baking_room(request.source))
    return QuantizedHandle(output, hold(output), key, request.lasting(), report, (note,) if note else ())


def _make_room(output: Path, nbytes: int) -> None:
    """Remove what failed runs left and then the oldest results while the disk has too little room for `output`.

    The engine says so if it still has.
    """
    folder = output.parent
    # The engine begins an output's own working file anew, so that its bytes are room.
    own = file_state(output.with_name(f"{output.name}.partial"))
    needed = nbytes * 1.02 - (own[0] if own is not None else 0)
    for path in (*_leftovers(folder), *_oldest_first(folder.glob("*.safetensors"))):
        if shutil.disk_usage(folder).free > needed:
            return
        # Windows keeps what somebody has open.
        with contextlib.suppress(OSError):
            path.unlink()


def _leftovers(folder: Path) -> list[Path]:
    """Working files and journals that nobody has written to for long; a lock may be old and yet be held."""
    before = (time.time() - _ABANDONED) * 1e9
    found = [path for path in folder.glob("*.partial*") if path.suffix != ".lock"]
    return [path for path in _oldest_first(found) if (state := file_state(path)) is not None and state[1] < before]


def _oldest_first(paths: Iterable[Path]) -> list[Path]:
    """By time of the last change, without those that are gone by now."""
    states = {path: file_state(path) for path in paths}
    there = {path: state[1] for path, state in states.items() if state is not None}
    return sorted(there, key=there.__getitem__)
