"""Sums of one triangle against whole ones."""

import pytest
import torch
from samples import generator

from tpec.statistics.packing.panels import Panels, panels_bytes
from tpec.statistics.workspace import Workspace

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 255, 256, 257, 600])
def test_sums_are_those_of_the_whole_matrix(size: int) -> None:
    rows = torch.randn(3, 50, size, generator=generator())
    sums = Panels(3, size, CPU, Workspace())
    assert not sums.usable
    sums.add(rows[:, :20])
    sums.add(rows[:, 20:])
    assert sums.usable
    found = sums.matrix(50)
    assert torch.equal(found, found.mT)
    torch.testing.assert_close(found, rows.mT @ rows / 50)
    found.zero_()
    assert sums.matrix(50).any()
    assert 4 * size * (size + 1) // 2 <= panels_bytes(size) <= 4 * size * (size + 256) // 2 + 4 * 256 * 256


def test_infinite_sums_are_no_use() -> None:
    sums = Panels(1, 300, CPU, Workspace())
    sums.add(torch.full((1, 2, 300), float("inf")))
    assert not sums.usable
