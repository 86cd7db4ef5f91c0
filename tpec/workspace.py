"""What the sums of one collection share: random test matrices, and pinned memory on the way to the host."""

import torch

_SEED = 20250815


class Workspace:
    """Serves one thread; sums of the same collection take it in turns."""

    def __init__(self) -> None:
        self._matrices: dict[tuple[int, int, torch.device], torch.Tensor] = {}
        self._pinned: torch.Tensor | None = None

    def test_matrix(self, width: int, rank: int, device: torch.device) -> torch.Tensor:
        """Normal values [width, rank], always the same."""
        key = width, rank, device
        if key not in self._matrices:
            with torch.inference_mode(False):
                values = torch.randn(width, rank, generator=torch.Generator().manual_seed(_SEED))
                self._matrices[key] = values.to(device)
        return self._matrices[key]

    def add(self, total: torch.Tensor, part: torch.Tensor) -> None:
        """total += part, of one shape; a part on a GPU and a total on the host is the case to be quick in."""
        downwards = part.device.type == "cuda" and total.device.type == "cpu"
        total += self._fetched(part) if downwards else part.to(total.device)

    def _fetched(self, part: torch.Tensor) -> torch.Tensor:
        """The float32 values in memory that the next call uses again: fresh memory is slow to get and to copy to."""
        if self._pinned is None or self._pinned.numel() < part.numel():
            with torch.inference_mode(False):
                self._pinned = torch.empty(part.numel(), pin_memory=True)
        return self._pinned[: part.numel()].view(part.shape).copy_(part)
