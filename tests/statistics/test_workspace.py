"""What sums share."""

import torch

from tpec.statistics.workspace import Workspace

CPU = torch.device("cpu")


def test_the_test_matrix_is_one_and_always_the_same() -> None:
    workspace = Workspace()
    matrix = workspace.test_matrix(16, 4, CPU)
    assert matrix.shape == (16, 4)
    assert workspace.test_matrix(16, 4, CPU) is matrix
    assert torch.equal(Workspace().test_matrix(16, 4, CPU), matrix)
    assert workspace.test_matrix(32, 4, CPU).shape == (32, 4)
    assert 0.5 < matrix.std() < 1.5


def test_added_in_inference_mode_to_what_was_made_outside() -> None:
    workspace, total = Workspace(), torch.ones(2, 3)
    with torch.inference_mode():
        workspace.add(total, torch.full((2, 3), 2.0))
        matrix = workspace.test_matrix(8, 2, CPU)
    assert torch.equal(total, torch.full((2, 3), 3.0))
    assert not matrix.is_inference()
