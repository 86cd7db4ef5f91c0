"""Headers as they should be, and everything else: never an error other than TpecError."""

import json
import pickle
import re
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from samples import load, same_bits, write_raw

from tpec.errors import TpecError
from tpec.files.checkpoint import Reader, open_checkpoint
from tpec.files.dtypes import TORCH_DTYPES
from tpec.files.header import MAX_HEADER_BYTES, read_header


def refused(path: Path, words: str) -> None:
    with pytest.raises(TpecError, match=words) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def entry(start: int, end: int, dtype: object = "U8", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


def test_file_of_the_reference_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a.weight": torch.randn(3, 5), "b": torch.tensor(7), "empty": torch.zeros(0, 4),
               "half": torch.randn(2).half(), "flag": torch.tensor([True, False])}
    save_file(tensors, path, {"title": "x"})
    infos, metadata, raw, _ = read_header(path)
    assert metadata == {"title": "x"}
    assert json.loads(raw)["a.weight"]["shape"] == [3, 5]
    assert infos.keys() == tensors.keys()
    assert [info.start for info in infos.values()] == sorted(info.start for info in infos.values())
    assert (infos["b"].shape, infos["b"].items, infos["b"].dtype, infos["b"].nbytes) == ((), 1, "I64", 8)
    assert (infos["empty"].items, infos["empty"].nbytes) == (0, 0)
    with Reader(open_checkpoint(path)) as reader:
        assert all(same_bits(reader.tensor(name), tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(("code", "dtype"), TORCH_DTYPES.items())
def test_every_dtype_is_read_as_it_is(tmp_path: Path, code: str, dtype: torch.dtype) -> None:
    data = bytes(range(0, 2 * dtype.itemsize)) if code != "BOOL" else b"\x00\x01"
    path = write_raw(tmp_path / "a.safetensors", {"x": entry(0, len(data), code, [2, 1])}, data)
    with Reader(open_checkpoint(path)) as reader:
        tensor = reader.tensor("x")
    assert (tensor.dtype, tuple(tensor.shape)) == (dtype, (2, 1))
    assert bytes(tensor.reshape(-1).view(torch.uint8).tolist()) == data


def test_largest_header_is_that_of_the_reference() -> None:
    assert MAX_HEADER_BYTES == 100_000_000


BAD_FILES = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"1234567", "only 7 bytes"),
    "zero header": (bytes(8), "not valid JSON"),
    "zeros": (bytes(64), "not valid JSON"),
    "random bytes": (bytes(range(7, 255)) * 4, "claims a header"),
    "120 MB header claim": (struct.pack("<Q", 120_000_000) + b"{}", "claims a header of 120000000 bytes"),
    "all bits": (b"\xff" * 32, "claims a header"),
    "truncated in the header": (struct.pack("<Q", 50) + b'{"a":', "ends inside its header"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2), "pickled"),
    "pickle of today": (pickle.dumps({"a": 1}, protocol=4), "pickled"),
    "zip of torch.save": (b"PK\x03\x04" + bytes(60), "pickled"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(24), "GGUF"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "claims a header"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_what_is_not_safetensors_is_named(tmp_path: Path, case: str) -> None:
    content, words = BAD_FILES[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    refused(path, words)


BAD_HEADERS = {
    "not an object": ([], b"", "not a JSON object"),
    "text": (b'"hi"', b"", "not a JSON object"),
    "not UTF-8": (b'{"\xff\xfe": 1}', b"", "not valid JSON"),
    "cut JSON": (b'{"a": {"dtype": "U8"', b"", "not valid JSON"),
    "deep JSON": (b"[" * 200_000, b"", "not valid JSON"),
    "long number": (b'{"a": ' + b"9" * 5000 + b"}", b"", "not valid JSON"),
    "duplicate key": (b'{"a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                      b' "a": {"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"12", "twice"),
    "duplicate key within": (b'{"a": {"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1", "twice"),
    "metadata list": ({"__metadata__": [1]}, b"", "not a table of strings.*save them again with safetensors"),
    "metadata number": ({"__metadata__": {"a": "", "b": 1}}, b"", "of strings .'b' is none.: save the file again with"),
    "metadata object": ({"__metadata__": {"a": {"b": "c"}}}, b"", "of strings .'a' is none.: save the file again with"),
    "metadata null within": ({"__metadata__": {"a": None}}, b"", "of strings .'a' is none.: save the file again with"),
    "entry is a list": ({"a": [1]}, b"", "'a'"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"1", "missing"),
    "no shape": ({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, b"1", "missing"),
    "no offsets": ({"a": {"dtype": "U8", "shape": [1]}}, b"1", "missing"),
    "dtype number": ({"a": entry(0, 1, dtype=3)}, b"1", "dtype is not a name"),
    "dtype list": ({"a": entry(0, 1, dtype=["U8"])}, b"1", "dtype is not a name"),
    "negative size": ({"a": entry(0, 1, shape=[-1])}, b"1", "shape is not a list of sizes"),
    "two negative sizes": ({"a": entry(0, 4, shape=[-2, -2])}, b"1234", "shape is not a list of sizes"),
    "fractional size": ({"a": entry(0, 1, shape=[1.0])}, b"1", "shape is not a list of sizes"),
    "boolean size": ({"a": entry(0, 1, shape=[True])}, b"1", "shape is not a list of sizes"),
    "shape is a number": ({"a": entry(0, 1, shape=1)}, b"1", "shape is not a list of sizes"),
    "negative offset": ({"a": entry(-1, 0, shape=[1])}, b"1", "not two positions"),
    "fractional offset": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1.0]}}, b"1", "not two positions"),
    "one offset": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"1", "not two positions"),
    "offsets reversed": ({"a": entry(1, 0, shape=[1])}, b"1", "'a'"),
    "huge offset": ({"a": entry(2**70, 2**70 + 1, shape=[1])}, b"1", "not two positions"),
    "far offset": ({"a": entry(2**63, 2**63 + 1, shape=[1])}, b"1", "leaves a hole"),
    "huge size": ({"a": entry(0, 1, shape=[2**63, 2**63])}, b"1", "not possible"),
    "numbers too long to print": ({"a": entry(0, 1, shape=[10**4000, 10**4000])}, b"1", "not a list of sizes"),
    "size too small for its dtype": ({"a": entry(0, 6, "F32", [2])}, bytes(6), r"F32 \[2\] needs 8"),
    "size too large for its dtype": ({"a": entry(0, 8, "BF16", [2])}, bytes(8), "needs 4"),
    "overlap": ({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6), "'b' overlaps"),
    "same place twice": ({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4), "overlaps"),
    "hole": ({"a": entry(0, 4), "b": entry(6, 8)}, bytes(8), "'b' leaves a hole"),
    "hole at the start": ({"a": entry(2, 4)}, bytes(4), "'a' leaves a hole"),
    "truncated data": ({"a": entry(0, 10)}, bytes(9), "cut short"),
    "no data": ({"a": entry(0, 10)}, b"", "cut short"),
    "trailing byte": ({"a": entry(0, 10)}, bytes(11), "1 bytes after its last tensor"),
    "trailing bytes, no tensors": ({}, bytes(3), "3 bytes after"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_malformed_header_is_refused_with_its_fault(tmp_path: Path, case: str) -> None:
    header, data, words = BAD_HEADERS[case]
    refused(write_raw(tmp_path / "m.safetensors", header, data), words)


def test_metadata_null_is_none(tmp_path: Path) -> None:
    """As the reference implementation and ComfyUI take it."""
    path = write_raw(tmp_path / "m.safetensors", {"__metadata__": None, "a": entry(0, 1)}, b"1")
    infos, metadata, *_ = read_header(path)
    assert (list(infos), metadata) == (["a"], {})
    assert load(path)["a"].tolist() == [49]


def test_missing_file_folder_and_endless_name(tmp_path: Path) -> None:
    with pytest.raises(TpecError, match="There is no file"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(TpecError, match="is a folder"):
        read_header(tmp_path)
    with pytest.raises(TpecError, match="cannot be read"):
        read_header(tmp_path / ("n" * 300))


@pytest.mark.parametrize("cut", [1, 8, 9, 40, 200, 700])
def test_any_truncation_is_refused(tmp_path: Path, cut: int) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.zeros(50), "b": torch.zeros(50)}, whole)
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole.read_bytes()[:-cut])
    refused(path, "short|ends inside|only|empty")


def survives(path: Path) -> None:
    """Reading gives a consistent table or a TpecError of one sentence, nothing else."""
    try:
        infos, metadata, *_ = read_header(path)
    except TpecError as error:
        assert re.fullmatch(r"[^\n]+\.", str(error))
        return
    size = path.stat().st_size
    at = size - sum(info.nbytes for info in infos.values())
    for info in infos.values():
        assert info.start == at
        at += info.nbytes
    assert at == size
    assert all(isinstance(value, str) for value in metadata.values())


@given(content=st.binary(max_size=80))
@settings(max_examples=150)
def test_random_bytes_give_a_consistent_table_or_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    survives(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6)
offsets = st.lists(st.integers(-2, 20) | json_values, max_size=3) | json_values
entries = st.fixed_dictionaries({}, optional={
    "dtype": st.sampled_from(["U8", "BF16", "F32", "F4", "F8_E4M3", "C64", "NEW"]) | json_values,
    "shape": st.lists(st.integers(0, 4), max_size=3) | json_values, "data_offsets": offsets})
headers = st.dictionaries(st.sampled_from(["a", "b", "c.weight", "__metadata__"]), entries | json_values, max_size=4)


@given(header=headers | json_values, data=st.binary(max_size=24), claim=st.integers(-3, 3))
@example(header={"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, data=b"12", claim=0)
@example(header={"\n": None}, data=b"", claim=0)
@settings(max_examples=400)
def test_random_headers_give_a_consistent_table_or_one_sentence(tmp_path: Path, header: object, data: bytes,
                                                                claim: int) -> None:
    text = json.dumps(header).encode()
    survives(write_raw(tmp_path / "m.safetensors", text, data, max(0, len(text) + claim)))


@given(at=st.integers(0, 400), value=st.integers(0, 255))
@settings(max_examples=200)
def test_one_changed_byte_gives_a_consistent_table_or_one_sentence(tmp_path: Path, at: int, value: int) -> None:
    whole = tmp_path / "whole.safetensors"
    if not whole.exists():
        save_file({"a.weight": torch.zeros(4, 4).bfloat16(), "b": torch.zeros(3)}, whole, {"title": "x"})
    content = bytearray(whole.read_bytes())
    content[at % len(content)] = value
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    survives(path)
