"""The same bits with any number of CPU threads."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import REPOSITORY, environment, generator, sha256, weights

from tpec.command.demo import flux_shapes
from tpec.rounding.reproducible import cholesky, cholesky_inverse, total
from tpec.statistics.calibration import Calibration
from tpec.statistics.inputs import Gram, HeldInputs
from tpec.statistics.storage import save_calibration

#: MKL promises nothing unless told to; with more threads than this, matrices of odd and small sizes may differ.
THREADS = (1, 2)
#: Tells MKL to: on some processors its products of large matrices differ between one and two threads, too.
STRICT = "AVX2,STRICT"


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def positive(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Well-conditioned positive definite [..., n, n]."""
    root = torch.randn(*shape, shape[-1] * 2, generator=generator(), dtype=dtype)
    return root @ root.mT / shape[-1]


def bits(compute: Callable[[], torch.Tensor]) -> set[bytes]:
    """The result's bytes with each number of threads."""
    found = set()
    for threads in THREADS:
        torch.set_num_threads(threads)
        found.add(compute().contiguous().numpy().tobytes())
    return found


@pytest.mark.parametrize("shape", [(1,), (32,), (33,), (100,), (192,), (5, 70), (2, 3, 40), (0,)])
def test_factor_and_inverse_are_right(shape: tuple[int, ...]) -> None:
    matrix = positive(*shape, dtype=torch.float64)
    lower = cholesky(matrix, check=True)
    assert torch.equal(lower, lower.tril())
    assert torch.allclose(lower @ lower.mT, matrix, atol=1e-12)
    assert torch.allclose(cholesky_inverse(lower) @ matrix, torch.eye(shape[-1], dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("at", [0, 31, 32, 99])
def test_matrix_without_a_factor(at: int) -> None:
    matrix = positive(100)
    matrix[at, at] = -1
    with pytest.raises(torch.linalg.LinAlgError):
        cholesky(matrix, check=True)
    assert cholesky(matrix).shape == matrix.shape


def test_the_matrix_is_left_as_it_was() -> None:
    matrix = positive(100)
    before = matrix.clone()
    cholesky(matrix)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("shape", [(), (7,), (300, 200), (3, 4, 5)])
def test_total(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=generator(), dtype=torch.float64)
    assert total(x).shape == ()
    assert total(x).item() == pytest.approx(x.sum().item())


def test_bits_do_not_depend_on_threads() -> None:
    matrix, batch = positive(768), positive(6, 192)
    lower, many = torch.linalg.cholesky(matrix), torch.randn(1000, 900, generator=generator())
    assert len(bits(lambda: cholesky(matrix))) == 1
    assert len(bits(lambda: cholesky(batch))) == 1
    assert len(bits(lambda: cholesky_inverse(lower))) == 1
    assert len(bits(lambda: total(many))) == 1
    assert len(bits(lambda: total(many.mT.square()))) == 1


def quantized(source: Path, threads: int, *more: object) -> str:
    """SHA-256 of what the command writes with so many threads."""
    output = source.with_name(f"{threads}.safetensors")
    command = [sys.executable, "-m", "tpec", "quantize", source, "-o", output, "--overwrite", "--quiet", "--device",
               "cpu", *more]
    settings = {"OMP_NUM_THREADS": str(threads), "MKL_CBWR": STRICT}
    subprocess.run(list(map(str, command)), env=environment() | settings, cwd=REPOSITORY, timeout=300, check=True)
    return sha256(output)


@pytest.mark.slow
def test_files_do_not_depend_on_threads(tmp_path: Path) -> None:
    """Layers wide enough that sums and factors would be divided; torchrun starts its processes with one thread each."""
    source = tmp_path / "model.safetensors"
    save_file(weights(flux_shapes(1024, 1, 1)), source)
    some = ("--exclude", r"double_blocks|linear1|_in\.")
    assert len({quantized(source, threads, *some) for threads in THREADS}) == 1
    layer = "single_blocks.0.modulation.lin"
    stats = HeldInputs(torch.zeros(1024), 5.0, 10_000, Gram(positive(1024)))
    path = save_calibration(Calibration({"a": stats}, {layer: "a"}, "hash"), tmp_path / "stats.safetensors")
    some = ("--exclude", r"double_blocks|linear|_in\.", "--calibration", path)
    assert len({quantized(source, threads, *some) for threads in THREADS}) == 1
