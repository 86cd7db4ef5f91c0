"""Leading singular directions against a full SVD in float64."""

import pytest
import torch
from samples import generator

from tpec.rounding.principal import data_free_metric, principal_components, row_chunks, start_directions

CHUNK = 1 << 20


def structured(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Noise with a few directions that stand out."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(rows, 4, generator=generator), torch.randn(4, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator) + left * torch.tensor([8.0, 5.0, 3.0, 2.0]) @ right


def components(weight: torch.Tensor, k: int = 4, chunk: int = CHUNK):
    return principal_components(weight, weight.abs().max().float(), k, chunk)


@pytest.mark.parametrize("shape", [(200, 100), (100, 200), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_first_triple_is_that_of_the_svd(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = structured(*shape).to(dtype)
    left, sigma, right = torch.linalg.svd(weight.double(), full_matrices=False)
    found = components(weight)
    assert (found.first_value * found.unit).item() == pytest.approx(sigma[0].item(), rel=1e-5)
    assert abs(found.first_right.double() @ right[0]) == pytest.approx(1, abs=1e-5)
    assert abs(found.first_left.double() @ left[:, 0]) == pytest.approx(1, abs=1e-5)
    assert (found.first_left.double() @ left[:, 0]).sign() == (found.first_right.double() @ right[0]).sign()


def test_basis_spans_the_leading_space_and_is_orthonormal() -> None:
    weight = structured(300, 120)
    right = torch.linalg.svd(weight.double())[2][:4]
    found = components(weight)
    assert found.right.shape == (120, 4)
    assert torch.allclose(found.right.mT @ found.right, torch.eye(4), atol=1e-5)
    assert (right @ found.right.double()).square().sum().item() == pytest.approx(4, abs=0.02)


@pytest.mark.parametrize("shape", [(1, 1), (1, 20), (20, 1), (3, 5), (13, 12)])
def test_small_shapes(shape: tuple[int, int]) -> None:
    weight = structured(*shape)
    found = components(weight, 50)
    assert found.right.shape == (shape[1], min(shape))
    sigma = torch.linalg.svdvals(weight.double())[0].item()
    assert (found.first_value * found.unit).item() == pytest.approx(sigma, rel=1e-4)


@pytest.mark.parametrize("size", [1e-30, 1e38])
def test_size_leaves_the_directions(size: float) -> None:
    weight = structured(80, 60)
    weight /= weight.abs().max()
    plain, scaled = components(weight), components(weight * size)
    assert torch.allclose(plain.first_right.abs(), scaled.first_right.abs(), atol=1e-4)
    assert scaled.first_value.item() == pytest.approx(plain.first_value.item(), rel=1e-4)


def test_zeros_and_rank_one_are_finite() -> None:
    for weight in (torch.zeros(30, 20), torch.ones(30, 20), torch.eye(30)[:, :20] * 0 + torch.arange(20.0)):
        found = components(weight)
        for tensor in (found.right, found.first_right, found.first_left, found.first_value):
            assert tensor.isfinite().all()
    assert components(torch.ones(30, 20)).first_value.item() == pytest.approx(600**0.5, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_few_components_are_found(rank: int, seed: int) -> None:
    """What is left beside them underflows, which some eigenvalue routines do not survive."""
    random = generator(seed)
    size = 10.0 ** torch.randint(-30, 8, (), generator=random)
    weight = size * (torch.randn(40, rank, generator=random) @ torch.randn(rank, 30, generator=random))
    found = components(weight)
    assert found.right.isfinite().all()
    sigma = torch.linalg.svdvals(weight.double())[0].item()
    assert (found.first_value * found.unit).item() == pytest.approx(sigma, rel=1e-4)


def test_chunks_give_the_same_directions() -> None:
    weight = structured(101, 50)
    whole, parts = components(weight), components(weight, chunk=50 * 7)
    assert torch.allclose(whole.first_right, parts.first_right, atol=1e-4)


def test_kept_directions_and_new_ones_give_the_same_bits() -> None:
    weight, largest = structured(90, 70), structured(90, 70).abs().max().float()
    kept = start_directions()
    first, second = (principal_components(weight, largest, 4, 1 << 20, directions=kept) for _ in range(2))
    for other in (second, principal_components(weight, largest, 4, 1 << 20)):
        assert torch.equal(first.right, other.right)
        assert torch.equal(first.first_left, other.first_left)


def test_row_chunks_cover_all_rows_once() -> None:
    for rows, columns, chunk in ((1, 1, 1), (10, 3, 7), (10, 100, 7), (5, 1, 100), (7, 0, 5)):
        chunks = row_chunks((rows, columns), chunk)
        assert [row for begin, end in chunks for row in range(begin, end)] == list(range(rows))
        assert all((end - begin) * columns <= max(chunk, columns) for begin, end in chunks)


def test_metric_counts_the_components_more() -> None:
    found = components(structured(100, 40))
    metric = data_free_metric(found, 2.0)
    assert sorted(metric.order.tolist()) == list(range(40))
    leverage = found.right.square().sum(1)[metric.order]
    assert torch.equal(leverage, leverage.sort(descending=True).values)
    along = found.first_right[metric.order][:, None]
    assert metric.loss(along).item() == pytest.approx(3, abs=0.01)
