"""Rounding the rows of a layer together: errors of some are made up for by others where the result cannot tell them.

The loss is tr(S E M E^T). Rows are rounded in groups; with S = U D U^T as for the columns (metric.py), what earlier
groups did moves the targets of the next one by -E_earlier U_earlier,group U_group^-1. Within a group every row is
rounded for itself, by error feedback on M.
"""

import torch

from ..statistics.gradients import GradientStats
from .damping import Damping, damped, scaled
from .feedback import Tick, feedback, improve, no_tick
from .metric import Metric, unit_upper

#: Groups of rows per run. More are better and slower, each doubling less so.
GROUPS = 8
_DAMPING = Damping(4.0, 0.03, 0.3)


class RowCoupling:
    """A layer's damped output statistics S [runs, run, run], ready for rounding its rows; on `device`.

    Raises TpecError when they are not positive.
    """

    def __init__(self, stats: GradientStats, device: torch.device) -> None:
        self._matrix = stats.second_moment(device)
        self.rows, self.run = stats.rows, self._matrix.shape[1]
        # Strided groups take a few rows of everything (of every head, say), so that each finds partners left.
        self._groups = [torch.arange(first, self.run, GROUPS, device=device) for first in range(min(GROUPS, self.run))]
        order = torch.cat(self._groups)
        scaled(self._matrix, self.rows)
        upper = damped(self._matrix, _DAMPING.share(self.run, stats.tokens),
                       lambda matrix: unit_upper(matrix[:, order][:, :, order]))
        self._pulls = self._group_pulls(upper)

    def _group_pulls(self, upper: torch.Tensor) -> list[torch.Tensor]:
        """For each group [runs, earlier, size]: how errors of the groups before it move its targets."""
        pulls, begin = [], 0
        for group in self._groups:
            end = begin + len(group)
            pulls.append(torch.linalg.solve_triangular(upper[:, begin:end, begin:end], upper[:, :begin, begin:end],
                                                       upper=True, left=False, unitriangular=True))
            begin = end
        return pulls

    def weigh(self, errors: torch.Tensor, begin: int) -> torch.Tensor:
        """E S for errors [n, rows] of the rows from `begin` on, a multiple of `run`."""
        return self._merged(self._runs(errors).transpose(0, 1) @ self._chunk(self._matrix, errors, begin),
                            errors.shape[1])

    def round(self, weights: torch.Tensor, begin: int, metric: Metric, sweeps: int,
              tick: Tick = no_tick) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Values and errors [n, rows], and how many sweeps were made (the most of any group).

        weights [n, rows] are in units of the scale, in the metric's order, of the rows from `begin` on, a multiple of
        `run`.
        """
        targets = self._runs(weights)
        n, runs, _ = targets.shape
        values, sweeps_done = torch.empty_like(targets), 0
        # Errors of the groups before, [runs, n, rows so far].
        earlier = weights.new_empty(runs, n, 0)
        for group, pull in zip(self._groups, self._pulls, strict=True):
            wanted = targets[:, :, group]
            if earlier.shape[2]:
                wanted = wanted - (earlier @ self._chunk(pull, weights, begin)).transpose(0, 1)
            wanted = wanted.reshape(n, -1)
            rounded, errors = feedback(wanted, metric, tick)
            sweeps_done = max(sweeps_done, improve(rounded, errors, metric, sweeps, tick))
            values[:, :, group] = rounded.view(n, runs, -1)
            earlier = torch.cat([earlier, (values[:, :, group] - targets[:, :, group]).transpose(0, 1)], 2)
        result = values.reshape(n, -1)[:, : weights.shape[1]]
        return result, result - weights, sweeps_done

    def _runs(self, tensor: torch.Tensor) -> torch.Tensor:
        """[n, rows] as [n, runs, run]; the last run of the layer is padded with rows of zeros.

        S is zero there, so they stay zero and cost nothing.
        """
        n, rows = tensor.shape
        runs = -(-rows // self.run)
        return torch.nn.functional.pad(tensor, (0, runs * self.run - rows)).view(n, runs, self.run)

    def _chunk(self, matrices: torch.Tensor, tensor: torch.Tensor, begin: int) -> torch.Tensor:
        first = begin // self.run
        return matrices[first: first - (-tensor.shape[1] // self.run)]

    def _merged(self, runs: torch.Tensor, rows: int) -> torch.Tensor:
        return runs.transpose(0, 1).reshape(runs.shape[1], -1)[:, :rows]
