"""What a run is to do, checked before it writes anything."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import TpecError
from ..files import partial as spool
from ..files.layout import Layout
from ..files.replace import disk_errors, exists, is_folder, refuse_dead_link
from ..model.families import QUANTIZE
from ..model.formats import make_layout
from ..model.plan import Plan
from ..statistics.calibration import Calibration
from .fit import calibration_record, check_calibration, layer_options
from .lane import Known
from .tasks import Task, make_tasks


@dataclass(frozen=True)
class Job:
    """A run that passed every check: what to write where, and which tasks an earlier run has finished."""

    plan: Plan
    output: Path
    layout: Layout
    digest: str
    calibration: Calibration | None
    tasks: tuple[Task, ...]
    finished: Known
    sync_bytes: int = spool.SYNC_BYTES


def make_job(plan: Plan, output: Path, calibration: Calibration | None, overwrite: bool) -> Job:
    """Checks all that can be checked before anything is written. Raises TpecError."""
    check_output(plan, output, overwrite)
    scaled_inputs = plan.settings.matmul == "fp8" or any(layer.matmul == "fp8" for layer in plan.tensors)
    if plan.settings.method == "nearest" and not scaled_inputs:
        calibration = None
    covered = check_calibration(plan, calibration) if calibration else ()
    # Rounding to nearest has no use for statistics; the input scales of fp8 matmul come from them all the same.
    steering = calibration if plan.settings.method == "tpec" else None
    coupled = frozenset(layer.linear for layer in plan.of(QUANTIZE)
                        if steering and layer.linear_in_model in steering.outputs)
    tasks = make_tasks(plan, frozenset(covered if steering else ()), coupled)
    layout = make_layout(plan, layer_options(plan, calibration), calibration_record(tasks, steering))
    recipe = plan.settings.recipe() | {"calibration": calibration.digest() if calibration and covered else ""}
    digest = spool.job_digest(layout, plan.checkpoint.identity(), recipe)
    return Job(plan, output, layout, digest, steering, tasks, {})


def check_output(plan: Plan, output: Path, overwrite: bool) -> None:
    """Raises TpecError when `output` cannot or must not be written."""
    with disk_errors(output):
        if not is_folder(output.parent, "written"):
            raise TpecError(f"The folder {output.parent} does not exist: create it or choose another.")
        if is_folder(output, "written"):
            raise TpecError(f"{output} is a folder: name a file.")
        refuse_dead_link(output)
        # The working file replaces whatever has its name, so that must not be the input either.
        for target in (output, spool.partial_path(output)):
            if exists(target, "written") and any(exists(path) and path.samefile(target)
                                                 for path in plan.checkpoint.files):
                raise TpecError(f"{target.name} is the input itself: choose another name for the output.")
        refuse_existing(output, overwrite)


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Raises TpecError where `output` exists and must not be overwritten."""
    if exists(output, "written") and not overwrite:
        raise TpecError(f"{output} exists already: choose another name or allow overwriting (--overwrite).")
