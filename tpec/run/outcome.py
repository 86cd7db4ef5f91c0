"""What a run has done, put together from its processes into its report."""

from dataclasses import dataclass

import torch

from ..model.families import DROP, KEEP, QUANTIZE
from ..model.finite import nonfinite_note
from ..model.plan import Plan
from .fit import relative_notes
from .job import Job
from .lane import Known, Stages
from .processes import World
from .report import KeptLayer, LayerReport, Report


@dataclass(frozen=True)
class Done:
    """What one process's lanes did: what is known of tensors by name, stage times summed over lanes, notes."""

    known: Known
    stages: Stages
    notes: list[str]


def make_report(job: Job, parts: list[Done], devices: list[torch.device], world: World, seconds: float) -> Report:
    """Of all processes together; `seconds` from the beginning on."""
    known = {name: one for name, one in job.finished.items() if one}
    for part in parts:
        known |= {name: one for name, one in part.known.items() if one}
    plan = job.plan
    layers = tuple(LayerReport.from_json(known[layer.name]) for layer in plan.of(QUANTIZE))
    stages: dict[str, float] = {name: sum(getattr(part.stages, name) for part in parts)
                                for name in ("read", "compute", "write")}
    nonfinite = [layer.name for layer in plan.tensors if known.get(layer.name, {}).get("nonfinite")]
    notes = tuple(dict.fromkeys([*plan.bought, *plan.checkpoint.notes, *plan.notes, *job.layout.notes,
                                 *_uncovered(job), *relative_notes(plan, job.calibration), *nonfinite_note(nonfinite),
                                 *(note for part in parts for note in part.notes)]))
    where = ", ".join(str(device) for device in devices) + (f" x {world.size}" if world.size > 1 else "")
    kept = sum(layer.action not in (QUANTIZE, DROP) for layer in plan.tensors)
    return Report(plan.checkpoint.name, job.output, plan.kind, plan.family.name, plan.why, plan.settings.recipe(),
                  layers, kept, len(plan.of(DROP)), plan.checkpoint.nbytes, job.layout.nbytes, seconds, where,
                  stages, notes, _kept_layers(plan), job.calibration.summary() if job.calibration else "")


def _kept_layers(plan: Plan) -> tuple[KeptLayer, ...]:
    """Without those of models that a full checkpoint only carries along."""
    return tuple(KeptLayer(layer.linear, layer.shape, layer.reason) for layer in plan.of(KEEP)
                 if layer.name.endswith(".weight") and len(layer.shape) == 2 and plan.part(layer.name) is not None)


def _uncovered(job: Job) -> list[str]:
    """A note on layers that a calibration says nothing about."""
    if job.calibration is None:
        return []
    names = [layer.linear for layer in job.plan.of(QUANTIZE)
             if not layer.embedding and job.calibration.stats(layer.linear_in_model) is None]
    if not names:
        return []
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [f"{len(names)} layers have no statistics in the calibration and were rounded without: {shown}"]
