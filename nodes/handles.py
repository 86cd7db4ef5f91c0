"""What travels along the links: small frozen handles, never tensors (ComfyUI's cache cannot see inside them)."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tpec.errors import TpecError
from .saving.temp_files import TempFile

if TYPE_CHECKING:
    from ..tpec.files.source import Source
    from ..tpec.model.structure import Structure
    from ..tpec.run.report import Report
    from ..tpec.settings import Settings


@dataclass(frozen=True)
class CheckpointHandle:
    """What to quantize, the family the user chose, and what this ComfyUI would build from it (None: nothing).

    `patcher` is the MODEL of the graph that it describes, None for a file. ComfyUI looks for an attribute of that name:
    its cache then treats the handle as it treats the MODEL.
    """

    checkpoint: "Source"
    family: str
    structure: "Structure | None" = None
    patcher: Any = field(default=None, repr=False, compare=False)

    def lasting(self) -> "CheckpointHandle":
        """The same without holding a MODEL in memory."""
        return replace(self, patcher=None)


@dataclass(frozen=True)
class CalibrationHandle:
    """A calibration file: a saved one, or in ComfyUI's temp folder, where it stays as long as `temp` is held."""

    path: Path
    summary: str
    temp: TempFile | None = field(default=None, repr=False, compare=False)

    def file(self) -> Path:
        """The path. Raises TpecError when somebody removed the file, or the disk fails."""
        from ..tpec.files.replace import is_file

        if not is_file(self.path):
            raise TpecError(f"The calibration {self.path.name} is gone: run the node that made it again (change its "
                            "seed), and save it to keep it.")
        return self.path


@dataclass(frozen=True)
class QuantizeRequest:
    """All that decides the bytes of a result; enough to make it again.

    `like` is a quantized file whose layer layout the result takes over.
    """

    source: CheckpointHandle
    settings: "Settings"
    device: str
    calibration: CalibrationHandle | None = None
    like: Path | None = None

    def lasting(self) -> "QuantizeRequest":
        """The same without holding a MODEL in memory, for what outlives the prompt."""
        return replace(self, source=self.source.lasting())


@dataclass(frozen=True)
class QuantizedHandle:
    """A complete checkpoint in ComfyUI's temp folder, and how it was made; equal keys mean equal bytes.

    The file stays as long as `temp` is held.
    """

    path: Path
    temp: TempFile = field(repr=False, compare=False)
    key: str
    request: QuantizeRequest
    report: "Report"
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """ComfyUI's folder name for this file: diffusion_models, checkpoints or text_encoders."""
        return self.report.kind

    def summary(self) -> str:
        """The result in a few lines, what matters most first."""
        return "\n".join([self.report.summary(), *self.notes])

    def text(self) -> str:
        """The summary and a table of all layers."""
        return f"{self.summary()}\n\n{self.report.table()}"
