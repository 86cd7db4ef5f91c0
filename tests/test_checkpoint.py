"""One file or many shards as one model."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import same_bits, write_raw

from tpec.checkpoint import Reader, open_checkpoint
from tpec.errors import TpecError

FIRST = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2).half()}
SECOND = {"b.weight": torch.arange(4).reshape(2, 2), "b.bias": torch.tensor(3.0)}
INDEX = "model.safetensors.index.json"


def shards(folder: Path, weight_map: object = None, second: dict[str, torch.Tensor] | None = None) -> Path:
    save_file(FIRST, folder / "model-00001-of-00002.safetensors", {"one": "1"})
    save_file(second or SECOND, folder / "model-00002-of-00002.safetensors", {"two": "2"})
    if weight_map is None:
        weight_map = {name: "model-00001-of-00002.safetensors" for name in FIRST}
        weight_map |= {name: "model-00002-of-00002.safetensors" for name in SECOND}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder / INDEX


def refused(path: Path, words: str) -> None:
    with pytest.raises(TpecError, match=words) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_shards_are_one_model(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(shards(tmp_path))
    assert checkpoint.name == INDEX
    assert checkpoint.metadata == {"one": "1", "two": "2"}
    assert [path.name for path in checkpoint.files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    with Reader(checkpoint) as reader:
        for name, tensor in (FIRST | SECOND).items():
            assert same_bits(reader.tensor(name), tensor)
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in (FIRST | SECOND).values())


def test_folder_stands_for_its_index_or_its_only_file(tmp_path: Path) -> None:
    index = shards(tmp_path)
    assert open_checkpoint(tmp_path).path == index
    single = tmp_path / "single"
    single.mkdir()
    refused(single, "neither")
    save_file(FIRST, single / "x.safetensors")
    assert open_checkpoint(single).path == single / "x.safetensors"
    save_file(FIRST, single / "y.safetensors")
    refused(single, r"several models \(x.safetensors, y.safetensors\)")


def test_missing_shard_is_named(tmp_path: Path) -> None:
    index = shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    refused(index, "needs 1 file.*model-00002-of-00002.safetensors")


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    index = shards(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(index, "model-00002-of-00002.safetensors is cut short")


def test_doubled_tensor_is_refused(tmp_path: Path) -> None:
    refused(shards(tmp_path, second=SECOND | {"a.bias": torch.zeros(2)}), "'a.bias' is in two shards")


def test_tensor_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    names = {name: "model-00001-of-00002.safetensors" for name in FIRST} | {
        "lost.weight": "model-00002-of-00002.safetensors"}
    refused(shards(tmp_path, names), "'lost.weight' in model-00002-of-00002.safetensors, which does not hold it")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin", "..",
                                  "", 3, None])
def test_shard_names_with_paths_are_refused(tmp_path: Path, name: object) -> None:
    refused(shards(tmp_path, {"a.weight": name}), "not a plain .safetensors file name, for 'a.weight'")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"weight_map": 3}', '{"weight_map": {}}', "\udcff"])
def test_bad_index_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / INDEX
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(path, "index of shards|lists no tensors")


def test_deeply_nested_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / INDEX
    path.write_text("[" * 200_000)
    refused(path, "index of shards")


def test_missing_index_and_endless_names_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / INDEX, "cannot be read")
    refused(tmp_path / "none.safetensors", "There is no file")
    refused(tmp_path / ("n" * 300 + ".safetensors"), "cannot be read")


def test_file_without_tensors_is_refused(tmp_path: Path) -> None:
    refused(write_raw(tmp_path / "m.safetensors", {"__metadata__": {"a": "b"}}), "holds no tensors")


def test_identity_follows_content_and_time(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(FIRST, path)
    first = open_checkpoint(path).identity()
    assert open_checkpoint(path).identity() == first
    os.utime(path, ns=(1, 1))
    assert open_checkpoint(path).identity() != first
    assert open_checkpoint(path).digest == open_checkpoint(path).digest
    save_file(FIRST | SECOND, path)
    assert open_checkpoint(path).identity()["header"] != first["header"]


def test_parts_are_read_at_their_offsets(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(FIRST, path)
    checkpoint = open_checkpoint(path)
    part = bytearray(8)
    with Reader(checkpoint) as reader:
        reader.read_into(checkpoint.tensors["a.weight"], memoryview(part), 8)
    assert torch.frombuffer(part, dtype=torch.float32).tolist() == [2.0, 3.0]


def test_file_that_shrinks_while_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(5000)}, path)
    with Reader(open_checkpoint(path)) as reader:
        os.truncate(path, 500)
        with pytest.raises(TpecError, match="m.safetensors became shorter while it was read .tensor 'a'"):
            reader.tensor("a")
