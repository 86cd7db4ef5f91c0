"""NaN and infinity in bytes of any dtype, and which tensors must not hold them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import ITEM_BYTES

from tpec.errors import TpecError
from tpec.files.dtypes import TORCH_DTYPES
from tpec.files.header import TensorInfo
from tpec.model.finite import check_kept, holds_nonfinite, is_parameter, nonfinite_note

FLOATS = ["F16", "BF16", "F32", "F64"]


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("code", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@given(size=st.integers(1, 200), at=st.integers(0, 199))
def test_one_bad_value_anywhere_is_seen(code: str, value: float, size: int, at: int) -> None:
    tensor = torch.linspace(-1, 1, size).to(TORCH_DTYPES[code])
    tensor[0] = torch.finfo(tensor.dtype).max
    assert not holds_nonfinite(code, raw(tensor))
    tensor[at % size] = value
    assert holds_nonfinite(code, raw(tensor))


@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2"])
def test_every_byte_of_float8(code: str) -> None:
    for byte in range(256):
        one = torch.tensor([0, byte], dtype=torch.uint8)
        expected = not bool(one.view(TORCH_DTYPES[code]).float().isfinite().all())
        assert holds_nonfinite(code, one) == expected, byte


@pytest.mark.parametrize("code", ["I8", "U8", "I64", "BOOL"])
def test_integers_are_always_finite(code: str) -> None:
    assert not holds_nonfinite(code, torch.full((ITEM_BYTES.get(code, 1) * 8,), 255, dtype=torch.uint8))


@pytest.mark.parametrize("code", [*FLOATS, "F8_E4M3", "I64"])
def test_nothing_is_finite(code: str) -> None:
    assert not holds_nonfinite(code, torch.empty(0, dtype=torch.uint8))


@pytest.mark.parametrize(("name", "expected"), [
    ("double_blocks.0.img_attn.qkv.bias", True), ("double_blocks.0.img_attn.norm.key_norm.scale", True),
    ("img_in.weight", True), ("vae.decoder.norm.gamma", True), ("final.scale_shift_table", True), ("pos_embed", True),
    ("attn.in_proj_weight", True), ("conv.weight_g", True), ("logit_scale", True), ("cls_token", True),
    ("nan.table", False), ("sqrt_recip_alphas_cumprod", False), ("causal_mask", False), ("attn.masked_bias", False),
    ("mask_token", False), ("log_sigmas", False), ("inv_freq", False), ("bn.running_var", False)])
def test_parameters_and_buffers(name: str, expected: bool) -> None:
    assert is_parameter(name) == expected


def test_parameters_are_refused_unless_kept_and_buffers_are_told() -> None:
    bad, good = raw(torch.tensor([1.0, float("nan")])), raw(torch.ones(2))
    weight, table = TensorInfo("a.bias", "F32", (2,), 0, 8), TensorInfo("a.table", "F32", (2,), 0, 8)
    assert not check_kept(weight, good, False) and not check_kept(table, good, False)
    with pytest.raises(TpecError, match="'a.bias' holds NaN or infinite values.*--keep-nonfinite"):
        check_kept(weight, bad, False)
    assert check_kept(weight, bad, True) and check_kept(table, bad, False)
    assert nonfinite_note([]) == []
    assert nonfinite_note([f"t{at}" for at in range(7)])[0].endswith("in 7 tensor(s): t0, t1, t2, t3, t4, ...")
