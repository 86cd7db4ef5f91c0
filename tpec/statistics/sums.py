"""Running second moments of one layer's input: exact for moderate widths, a randomized summary above them."""

from typing import Protocol

import torch

from ..errors import is_out_of_memory
from .inputs import Gram, InputsOnDemand, InputStats, Summary, eigenpairs, gram_form, summary_form, with_mean
from .packing.panels import Panels, panels_bytes
from .workspace import Workspace, rows_at_a_time

#: Widths up to this keep the whole matrix E[x x^T]; wider ones a summary of rank width / SKETCH_SHARE.
WIDTH_LIMIT = 4096
SKETCH_SHARE = 8
_CPU = torch.device("cpu")


class Accumulator(Protocol):
    """Takes inputs [tokens, n] of any float dtype on any device, each call with a weight (1: as every other).

    `finish` gives their statistics; the sums become the large parts on access.
    """

    def add(self, rows: torch.Tensor, weight: float = 1.0) -> None: ...

    def finish(self) -> InputStats: ...


def accumulator_bytes(width: int) -> int:
    """Memory that the accumulator of one input takes."""
    return panels_bytes(width) if width <= WIDTH_LIMIT else 4 * width * (width // SKETCH_SHARE)


def make_accumulator(width: int, device: torch.device, workspace: Workspace | None = None) -> Accumulator:
    """The accumulator for inputs of `width` values, held on `device`; those of one collection share a workspace."""
    kind = GramAccumulator if width <= WIDTH_LIMIT else SketchAccumulator
    return kind(width, device, workspace or Workspace())


class _Moments:
    """Weighted sum, largest magnitude, number and weight of the rows seen."""

    def __init__(self, width: int, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.total = torch.zeros(width, device=device)
            self.absmax = torch.zeros((), device=device)
        self.tokens = 0
        self._weight = 0.0

    def add(self, rows: torch.Tensor, weight: float) -> None:
        self.total += (weight * rows.sum(0)).to(self.total.device)
        self.absmax.copy_(torch.maximum(self.absmax, rows.abs().max().to(self.absmax.device)))
        self.tokens += len(rows)
        self._weight += weight * len(rows)

    def mean(self) -> torch.Tensor:
        return _plain(self.total / self.count)

    @property
    def count(self) -> float:
        """What sums are divided by: the rows' weight."""
        return self._weight or 1.0


class GramAccumulator:
    """Adds up x x^T in float32; the product is made where the input is, the sum kept on `device`."""

    def __init__(self, width: int, device: torch.device, workspace: Workspace) -> None:
        self._moments = _Moments(width, device)
        self._sum = Panels(1, width, device, workspace)

    def add(self, rows: torch.Tensor, weight: float = 1.0) -> None:
        for part in rows.split(rows_at_a_time(rows.shape[-1])):
            part = part.float()
            self._moments.add(part, weight)
            self._sum.add(_scaled(part, weight)[None])

    def finish(self) -> InputStats:
        seen = self._moments
        return InputsOnDemand(seen.mean(), seen.absmax.item(), seen.tokens, gram_form(self._sum.size), self._moment)

    def _moment(self, device: torch.device) -> Gram:
        return Gram(self._sum.matrix(self._moments.count, device)[0])


class SketchAccumulator:
    """One-pass Nystrom approximation (Tropp et al. 2017, arXiv:1706.05736): keeps G Omega and the diagonal of G.

    It approximates what is beside the mean: the mean itself is known exactly, and often larger than all else.
    """

    def __init__(self, width: int, device: torch.device, workspace: Workspace) -> None:
        self._moments = _Moments(width, device)
        rank = max(1, width // SKETCH_SHARE)
        self._workspace = workspace
        #: Where the inputs are.
        self._nearby = device
        with torch.inference_mode(False):
            self._image = torch.zeros(width, rank, device=device)
            self._diagonal = torch.zeros(width, device=device)

    def add(self, rows: torch.Tensor, weight: float = 1.0) -> None:
        self._nearby = rows.device
        width, rank = self._image.shape
        test = self._workspace.test_matrix(width, rank, rows.device)
        for part in rows.split(rows_at_a_time(rows.shape[-1])):
            part = part.float()
            self._moments.add(part, weight)
            part = _scaled(part, weight)
            self._workspace.add(self._image, part.mT @ (part @ test))
            self._diagonal += part.square().sum(0).to(self._diagonal.device)

    def finish(self) -> InputStats:
        seen, (width, rank) = self._moments, self._image.shape
        return InputsOnDemand(seen.mean(), seen.absmax.item(), seen.tokens, summary_form(width, rank + 1), self._moment)

    def _moment(self, device: torch.device) -> Summary:
        vectors, values = self._nearby_eigenpairs()
        mean = self._moments.mean()
        rest = _plain(self._diagonal / self._moments.count) - mean.square() - vectors.square() @ values
        return with_mean(Summary(vectors, values, rest.clamp(min=0)), mean, device)

    def _nearby_eigenpairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        # Apple's devices have no float64, which the eigenvalues take.
        if self._nearby.type == "cuda":
            try:
                return self._eigenpairs(self._nearby)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        return self._eigenpairs(_CPU)

    def _eigenpairs(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        image = self._image.to(device) / self._moments.count
        width, rank = image.shape
        test = self._workspace.test_matrix(width, rank, device)
        mean = self._moments.mean().to(device)
        image.addr_(mean, mean @ test, alpha=-1)
        # A small shift keeps the core positive; it is taken off the eigenvalues again.
        shift = 1e-6 * image.norm() + torch.finfo(torch.float32).tiny
        image = image + shift * test
        core = test.mT @ image
        lower, _ = torch.linalg.cholesky_ex((core + core.mT) / 2)
        vectors, values = eigenpairs(torch.linalg.solve_triangular(lower, image.mT, upper=False).mT)
        return _plain(vectors), _plain((values - shift).clamp(min=0))


def _scaled(rows: torch.Tensor, weight: float) -> torch.Tensor:
    """Rows whose products have the weight."""
    return rows if weight == 1 else rows * weight**0.5


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor that may be changed outside inference mode too."""
    with torch.inference_mode(False):
        return torch.empty(tensor.shape).copy_(tensor)
