"""Sums of x x^T that keep one triangle: half of the memory and of the multiplications of the whole matrix."""

import torch

from ..workspace import Workspace

#: Rows of the matrix that are kept together; all columns from the first of them on.
_ROWS = 256
_CPU = torch.device("cpu")


def panels_bytes(size: int) -> int:
    """Memory of the panels of one [size, size] matrix."""
    return 4 * sum(rows * (size - begin) for begin, rows in _spans(size))


def _spans(size: int) -> list[tuple[int, int]]:
    return [(begin, min(_ROWS, size - begin)) for begin in range(0, size, _ROWS)]


class Panels:
    """Sums of x x^T [count, size, size] in float32 on `device`; products are made where x is."""

    def __init__(self, count: int, size: int, device: torch.device, workspace: Workspace) -> None:
        self.size = size
        self._workspace = workspace
        with torch.inference_mode(False):
            self._panels = [torch.zeros(count, rows, size - begin, device=device) for begin, rows in _spans(size)]

    def add(self, rows: torch.Tensor) -> None:
        """rows [count, tokens, size] float32."""
        for (begin, count), panel in zip(_spans(self.size), self._panels, strict=True):
            left, right = rows[..., begin:begin + count].mT, rows[..., begin:]
            if rows.device == panel.device:
                panel.baddbmm_(left, right)
            else:
                self._workspace.add(panel, left @ right)

    @property
    def usable(self) -> bool:
        """Whether anything but zeros was added, and only finite values."""
        return all(bool(panel.isfinite().all()) for panel in self._panels) and any(
            bool(panel.any()) for panel in self._panels)

    def matrix(self, divisor: float, device: torch.device = _CPU) -> torch.Tensor:
        """The sums over `divisor` [count, size, size], exactly symmetric, on `device` and the caller's own."""
        with torch.inference_mode(False):
            whole = torch.zeros(len(self._panels[0]), self.size, self.size, device=device)
            for (begin, count), panel in zip(_spans(self.size), self._panels, strict=True):
                whole[:, begin:begin + count, begin:] = (panel / divisor).to(device)
            # Within a panel's square both triangles are there; the upper one counts.
            return whole.triu_() + whole.triu(1).mT
