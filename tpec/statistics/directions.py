"""Random directions that are the same on every device and in every run."""

import torch


class Directions:
    """Normal matrices drawn from one seed, kept by shape and device until their owner goes; serves one thread.

    A model has few shapes, so each is drawn and copied once. A thread with a CUDA stream of its own has its own
    directions: memory let go of must not be in another stream's use.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._kept: dict[tuple[int, int, torch.device], torch.Tensor] = {}

    def matrix(self, rows: int, columns: int, device: torch.device) -> torch.Tensor:
        """Standard normal values [rows, columns] float32 on `device`; not to be written to."""
        key = rows, columns, device
        if key not in self._kept:
            with torch.inference_mode(False):
                values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(self._seed))
                self._kept[key] = values.to(device)
        return self._kept[key]
