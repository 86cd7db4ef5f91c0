"""Random directions: the same everywhere, drawn once, and gone with their owner."""

import gc
import weakref

import torch

from tpec.rounding.principal import start_directions
from tpec.statistics.directions import Directions

CPU = torch.device("cpu")


def test_one_seed_gives_one_matrix_for_each_shape() -> None:
    directions = Directions(7)
    matrix = directions.matrix(16, 4, CPU)
    assert matrix.shape == (16, 4) and 0.5 < matrix.std() < 1.5
    assert directions.matrix(16, 4, CPU) is matrix
    assert torch.equal(Directions(7).matrix(16, 4, CPU), matrix)
    assert not torch.equal(Directions(8).matrix(16, 4, CPU), matrix)
    assert directions.matrix(32, 4, CPU).shape == (32, 4)


def test_drawn_in_inference_mode_they_are_plain_tensors() -> None:
    with torch.inference_mode():
        assert not Directions(7).matrix(4, 2, CPU).is_inference()


def test_they_go_with_their_owner() -> None:
    owner = start_directions()
    kept = weakref.ref(owner.matrix(64, 12, CPU))
    del owner
    gc.collect()
    assert kept() is None
