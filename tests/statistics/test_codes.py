"""Numbers in few bits: what comes back, at every count, and what is nothing special."""

import pytest
import torch
from samples import generator

from tpec.statistics.packing.codes import COARSE, DTYPES, FINE, codes_shape, decode, encode


@pytest.mark.parametrize("bits", [FINE, COARSE])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_values_come_back_within_half_a_step(bits: int, count: int) -> None:
    values = torch.randn(count, generator=generator()) * torch.logspace(-20, 20, count)
    found = encode(values, bits)
    assert found.codes.shape == codes_shape(count, bits) and found.scales.shape == found.codes.shape[:1]
    assert found.codes.dtype == {"I8": torch.int8, "U8": torch.uint8}[DTYPES[bits]]
    back = decode(found, count)
    # A scale in bfloat16 may be 2^-9 too small, which cuts the largest value by as much.
    steps = found.scales.float().repeat_interleave(64)[:count]
    assert ((back - values).abs() <= steps * (0.5 + 2 ** (bits - 1) / 256)).all()


@pytest.mark.parametrize("bits", [FINE, COARSE])
def test_every_code_is_kept(bits: int) -> None:
    largest = 2 ** (bits - 1) - 1
    values = torch.arange(-largest, largest + 1).float()
    padded = torch.nn.functional.pad(values, (0, -len(values) % 64), value=float(largest))
    assert torch.equal(decode(encode(padded, bits), len(padded)).round(), padded)


@pytest.mark.parametrize("bits", [FINE, COARSE])
def test_zeros_and_what_has_no_scale_are_zeros(bits: int) -> None:
    values = torch.zeros(130)
    values[70] = 1e-44
    assert not decode(encode(values, bits), 130)[:64].any()
    assert decode(encode(values, bits), 130).isfinite().all()


def test_the_error_is_what_it_is_said_to_be() -> None:
    values = torch.randn(100_000, generator=generator())
    for bits, error in ((FINE, 0.008), (COARSE, 0.03)):
        assert 0.7 * error < (decode(encode(values, bits), 100_000) - values).norm() / values.norm() < 1.1 * error
