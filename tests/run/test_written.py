"""Whatever is quantized: the file is one that the safetensors library takes and that decodes by the format alone."""

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from samples import generator, save_flux

from tpec.check.verify import verify
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.run.pipeline import quantize
from tpec.settings import FORMATS, LAYER_MATMULS, METHODS, Settings

NAN_CODES = {0x7F, 0xFF}
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
#: How tensors are filled, by name.
FILLS = ("normal", "zeros", "constant", "denormal", "outlier", "rank one", "tiny", "large")


def e4m3fn(code: int) -> float:
    """One code's value by the OCP specification: 1 sign, 4 exponent (bias 7) and 3 mantissa bits."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


VALUES = torch.tensor([e4m3fn(code) for code in range(256)])


def entries(path: Path) -> tuple[dict[str, dict], dict[str, str], bytes]:
    """Header entries, metadata, and the data, read by the format's description."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + length])
    return header, header.pop("__metadata__"), content[8 + length:]


def raw(entry: dict, data: bytes) -> bytes:
    return data[slice(*entry["data_offsets"])]


def decoded(path: Path, layer: str) -> torch.Tensor:
    """A layer's weight: its codes by the table of the format, times the scale beside it."""
    header, _, data = entries(path)
    entry = header[f"{layer}.weight"]
    assert entry["dtype"] == "F8_E4M3"
    codes = torch.tensor(list(raw(entry, data)), dtype=torch.long)
    assert not NAN_CODES & set(codes.tolist())
    scales = {struct.unpack("<f", raw(header[name], data))[0]
              for name in (f"{layer}.weight_scale", f"{layer}.scale_weight") if name in header}
    assert len(scales) == 1
    return (VALUES[codes].double() * scales.pop()).reshape(entry["shape"])


def filled(shape: tuple[int, int], fill: str, seed: int, dtype: torch.dtype) -> torch.Tensor:
    plain = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    tensor = {"normal": plain * 0.03, "zeros": plain * 0, "constant": plain * 0 + 0.7, "denormal": plain * 1e-7,
              "outlier": plain * 0.03, "rank one": plain[:, :1] @ plain[:1], "tiny": plain * 1e-4,
              "large": plain * 3e3}[fill]
    if fill == "outlier":
        tensor[-1, -1] = 6e4
    return tensor.to(dtype)


layers = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from(FILLS), st.sampled_from(list(DTYPES)))
choices = st.fixed_dictionaries({"format": st.sampled_from(FORMATS), "matmul": st.sampled_from(LAYER_MATMULS),
                                 "method": st.sampled_from(METHODS), "top_k": st.none() | st.integers(1, 50)})


@given(found=st.lists(layers, min_size=1, max_size=4), seed=st.integers(0, 99), chosen=choices)
@settings(max_examples=60)
def test_random_plan_becomes_a_file_that_decodes_by_the_format_alone(tmp_path: Path, found: list, seed: int,
                                                                     chosen: dict) -> None:
    source, output = tmp_path / "m.safetensors", tmp_path / "q.safetensors"
    tensors = {f"net.{at}.proj.weight": filled((rows, columns), fill, seed + at, DTYPES[code])
               for at, (rows, columns, fill, code) in enumerate(found)}
    tensors |= {"net.norm.weight": torch.arange(5.0), "net.scalar": torch.tensor(2), "net.none": torch.zeros(0, 3)}
    save_file(tensors, source)
    output.unlink(missing_ok=True)
    report = quantize(make_plan(open_checkpoint(source), Settings(include=r"proj\.weight", **chosen)), output)
    written = load_file(output)
    assert {line.name for line in report.layers} == {f"net.{at}.proj" for at in range(len(found))}
    for line in report.layers:
        weight = tensors[f"{line.name}.weight"].double()
        error = (decoded(output, line.name) - weight).norm()
        assert error <= 0.2 * weight.norm() + 1e-30 and math.isfinite(line.relative_error)
        # A scale is a normal float32, so that weights below it are lost to no reader.
        assert line.scale >= torch.finfo(torch.float32).tiny
    assert all(torch.equal(written[name], tensors[name]) for name in ("net.norm.weight", "net.scalar", "net.none"))
    assert verify(source, output).ok


@pytest.mark.parametrize("chosen", [{"format": name} for name in FORMATS])
def test_a_models_file_decodes_by_the_format_alone(tmp_path: Path, chosen: dict) -> None:
    source, output = save_flux(tmp_path), tmp_path / "q.safetensors"
    report = quantize(make_plan(open_checkpoint(source), Settings(**chosen)), output)
    before, header = load_file(source), entries(output)[0]
    for line in report.layers:
        weight = before[f"{line.name}.weight"].double()
        assert (decoded(output, line.name) - weight).norm() < 0.05 * weight.norm()
    described = [name for name in header if name.endswith(".comfy_quant")]
    assert len(described) == (0 if chosen["format"] == "scaled_fp8" else len(report.layers))


def test_the_table_is_the_casts() -> None:
    """Of the decoder itself."""
    cast = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert torch.equal(VALUES.nan_to_num(1e9), cast.nan_to_num(1e9))
    assert {code for code in range(256) if math.isnan(e4m3fn(code))} == NAN_CODES


def test_report_names_what_an_outlier_costs_the_other_weights(tmp_path: Path) -> None:
    """Its error in percent looks perfect, as the outlier is nearly all of the layer's norm."""
    source = tmp_path / "m.safetensors"
    weight = filled((64, 64), "normal", 1, torch.float32)
    save_file({"good.weight": weight, "bad.weight": weight.index_put((torch.tensor([3]), torch.tensor([4])),
                                                                     torch.tensor(1e5))}, source)
    report = quantize(make_plan(open_checkpoint(source), Settings(include="weight")), tmp_path / "q.safetensors")
    good, bad = sorted(report.layers, key=lambda layer: layer.vanished)
    assert (good.name, bad.name) == ("good", "bad")
    assert bad.relative_error < 1e-3 and bad.vanished_share > 0.99
    assert good.vanished_share < 1e-3
    assert "1 layers have a few weights so large that others became 0: bad (100 %)" in report.summary()
    assert report.to_json()["layers"][0]["vanished"] in (good.vanished, bad.vanished)
