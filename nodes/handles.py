"""What travels along the links: small frozen handles, never tensors (ComfyUI's cache cannot see inside them)."""

from dataclasses import dataclass
from pathlib import Path

from comfy_api.latest import io

from ..tpec.checkpoint import Checkpoint
from ..tpec.errors import TpecError
from ..tpec.report import Report
from ..tpec.settings import Settings
from ..tpec.structure import Structure

CHECKPOINT = io.Custom("TPEC_CHECKPOINT")
CALIBRATION = io.Custom("TPEC_CALIBRATION")
QUANTIZED = io.Custom("TPEC_QUANTIZED")

CATEGORY = "TPEC FP8"


@dataclass(frozen=True)
class CheckpointHandle:
    """A validated header, the family the user chose, and what this ComfyUI would build from it (None: nothing)."""

    checkpoint: Checkpoint
    family: str
    structure: Structure | None = None


@dataclass(frozen=True)
class CalibrationHandle:
    """A calibration file, in ComfyUI's temp folder or a saved one."""

    path: Path
    summary: str

    def file(self) -> Path:
        """The path. Raises TpecError when somebody removed the file."""
        if not self.path.is_file():
            raise TpecError(f"The calibration {self.path.name} is gone: run the node that made it again (change its "
                            "seed), and save it to keep it.")
        return self.path


@dataclass(frozen=True)
class QuantizeRequest:
    """All that decides the bytes of a result; enough to make it again.

    `like` is a quantized file whose layer layout the result takes over.
    """

    source: CheckpointHandle
    settings: Settings
    device: str
    calibration: CalibrationHandle | None = None
    like: Path | None = None


@dataclass(frozen=True)
class QuantizedHandle:
    """A complete checkpoint in ComfyUI's temp folder, and how it was made; equal keys mean equal bytes."""

    path: Path
    key: str
    request: QuantizeRequest
    report: Report
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """ComfyUI's folder name for this file: diffusion_models, checkpoints or text_encoders."""
        return self.report.kind

    def text(self) -> str:
        return "\n".join([*self.notes, self.report.text()])
