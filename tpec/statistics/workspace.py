"""What the sums of one collection share: random test matrices, and pinned memory on the way to the host."""

import torch

from ..device import host_buffer
from .directions import Directions

#: Float32 values that are multiplied at a time, as rows of whatever width.
_VALUES = 1 << 25
_SEED = 20250815


class Workspace:
    """Serves one thread; sums of the same collection take it in turns."""

    def __init__(self) -> None:
        self._directions = Directions(_SEED)
        self._pinned: torch.Tensor | None = None

    def test_matrix(self, width: int, rank: int, device: torch.device) -> torch.Tensor:
        """Normal values [width, rank] float32 on `device`, always the same."""
        return self._directions.matrix(width, rank, device)

    def add(self, total: torch.Tensor, part: torch.Tensor) -> None:
        """total += part, of one shape; a part on a GPU and a total on the host is the case to be quick in."""
        downwards = part.device.type == "cuda" and total.device.type == "cpu"
        total += self._fetched(part) if downwards else part.to(total.device)

    def _fetched(self, part: torch.Tensor) -> torch.Tensor:
        """The float32 values in memory that the next call uses again: fresh memory is slow to get and to copy to."""
        if self._pinned is None or self._pinned.numel() < part.numel():
            self._pinned = None
            self._pinned = host_buffer(part.numel(), torch.float32)
        return self._pinned[: part.numel()].view(part.shape).copy_(part)


def rows_at_a_time(width: int) -> int:
    """Rows of `width` values that are made float32 and multiplied at a time."""
    return max(1, _VALUES // width)
