"""One file or many shards as one model."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import same_bits, save_flux, write_raw

from tpec.errors import TpecError
from tpec.files.checkpoint import Reader, open_checkpoint
from tpec.files.naming import default_output

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


#: Names that download tools and libraries give the index of a model's shards.
INDEX_NAMES = ["model.safetensors.index.json", "model.safetensors.index.fp16.json", "model.safetensors.fp16.index.json",
               "MODEL.Index.JSON", "model_index_of_shards.json", "model.safetensors.index.json.txt"]


@pytest.mark.parametrize("name", INDEX_NAMES)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\n  "])
def test_index_is_known_by_its_content(tmp_path: Path, name: str, mark: bytes) -> None:
    index = shards(tmp_path).rename(tmp_path / name)
    index.write_bytes(mark + index.read_bytes())
    (tmp_path / "config.json").write_text('{"weight_map": 3, "hidden_size": 8}')
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a.weight": "a.bin"}}')
    (tmp_path / "tokenizer.json").write_text('[{"content": "weight_map"}]')
    for path in (index, tmp_path, tmp_path / "model-00002-of-00002.safetensors"):
        checkpoint = open_checkpoint(path)
        assert checkpoint.path == index
        assert checkpoint.tensors.keys() == FIRST.keys() | SECOND.keys()


def test_two_indexes_are_two_models(tmp_path: Path) -> None:
    index = shards(tmp_path)
    (tmp_path / INDEX_NAMES[1]).write_bytes(index.read_bytes())
    refused(tmp_path, f"several models .({INDEX}, {INDEX_NAMES[1]}|{INDEX_NAMES[1]}, {INDEX}).: name one")
    refused(tmp_path / "model-00001-of-00002.safetensors", "belongs to several indexes")
    assert open_checkpoint(index).path == index


@pytest.mark.parametrize("stem", ["model-{}-of-00002.safetensors", "model.fp16-{}-of-00002.safetensors",
                                  "model-{}-of-00002.fp16.safetensors", "model-{}-of-00002.sft"])
def test_shards_without_index_are_one_model(tmp_path: Path, stem: str) -> None:
    names = [stem.format(number) for number in ("00001", "00002")]
    for name, tensors in zip(names, (FIRST, SECOND), strict=True):
        save_file(tensors, tmp_path / name)
    for path in (tmp_path, tmp_path / names[0], tmp_path / names[1]):
        checkpoint = open_checkpoint(path)
        assert [file.name for file in checkpoint.files] == names
        assert checkpoint.path == tmp_path / names[0]
        with Reader(checkpoint) as reader:
            assert all(same_bits(reader.tensor(name), tensor) for name, tensor in (FIRST | SECOND).items())


def test_shard_whose_siblings_are_missing_is_refused_by_their_names(tmp_path: Path) -> None:
    save_file(FIRST, tmp_path / "model-00002-of-00003.safetensors")
    save_file(FIRST, tmp_path / "other-00001-of-00003.safetensors")
    missing = "one of 3 shards.*not complete without model-00001-of-00003.safetensors, model-00003-of-00003.safetensors"
    refused(tmp_path / "model-00002-of-00003.safetensors", missing)
    refused(tmp_path, "several models .model-00002-of-00003.safetensors, other-00001-of-00003.safetensors.")
    (tmp_path / "other-00001-of-00003.safetensors").unlink()
    refused(tmp_path, missing)
    # An index that lists other files says nothing about this one.
    (tmp_path / INDEX).write_text('{"weight_map": {"a.weight": "x.safetensors"}}')
    refused(tmp_path / "model-00002-of-00003.safetensors", missing)


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file(FIRST, tmp_path / f"model-0000{number}-of-00002.safetensors")
    refused(tmp_path, "is in two shards of model-00001-of-00002.safetensors: they do not belong together")


def test_only_shard_is_a_whole_file(tmp_path: Path) -> None:
    save_file(FIRST, tmp_path / "model-00001-of-00001.safetensors")
    assert open_checkpoint(tmp_path).tensors.keys() == FIRST.keys()


@pytest.mark.parametrize("name", ["flux1-dev.sft", "FLUX.SFT", "flux.SafeTensors"])
def test_every_suffix_counts_in_a_folder(tmp_path: Path, name: str) -> None:
    save_file(FIRST, tmp_path / name)
    (tmp_path / "._model.safetensors").write_bytes(b"what macOS leaves beside a file")
    assert open_checkpoint(tmp_path).path == tmp_path / name


@pytest.mark.parametrize("keep_distillation", [False, True])
def test_result_beside_its_source_is_no_second_model(tmp_path: Path, keep_distillation: bool) -> None:
    """So that a folder can be quantized again, or verified."""
    result = default_output(tmp_path, keep_distillation)
    save_file(SECOND, result)
    assert open_checkpoint(tmp_path).path == result
    save_file(FIRST, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).path == tmp_path / "model.safetensors"


def test_index_may_list_sft_files(tmp_path: Path) -> None:
    save_file(FIRST, tmp_path / "one.sft")
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": dict.fromkeys(FIRST, "one.sft")}))
    assert open_checkpoint(tmp_path / "index.json").files == (tmp_path / "one.sft",)


def test_text_under_a_models_name_is_told_from_an_index(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text('{"error": "this model asks for a login"}')
    refused(path, "neither a safetensors file nor an index of shards")


def test_header_of_123_bytes_is_no_index(tmp_path: Path) -> None:
    """The first byte of such a file is a brace."""
    path = write_raw(tmp_path / "m.safetensors", json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [
        0, 1]}}).encode().ljust(123), b"1")
    assert path.read_bytes()[:1] == b"{"
    assert open_checkpoint(path).tensors.keys() == {"a"}


def test_file_that_is_gone_when_it_is_read_is_one_sentence(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(shards(tmp_path))
    checkpoint.files[1].unlink()
    for look in (lambda: Reader(checkpoint), checkpoint.identity):
        with pytest.raises(TpecError, match="model-00002-of-00002.safetensors cannot be read any more: No such file"):
            look()


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


@pytest.mark.parametrize("opened", [False, True])
def test_file_that_is_rewritten_after_its_header_was_read_is_refused(tmp_path: Path, opened: bool) -> None:
    """Its first tensors would be of one model and its last ones of another."""
    checkpoint = open_checkpoint(save_flux(tmp_path))
    reader = checkpoint.reader() if opened else None
    content = bytearray(checkpoint.path.read_bytes())
    content[-1] ^= 1
    checkpoint.path.write_bytes(content)
    os.utime(checkpoint.path, ns=(1, 1))  # as a clock of coarse steps would not show it
    with pytest.raises(TpecError, match="model.safetensors was changed while it was read"):
        (reader or checkpoint.reader()).tensor("img_in.weight")


@pytest.mark.skipif(os.name == "nt", reason="Windows replaces no open file")
def test_file_that_is_replaced_or_moved_while_it_is_open_is_read_on(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_flux(tmp_path))
    with checkpoint.reader() as reader:
        first = reader.tensor("img_in.weight")
        os.replace(save_flux(tmp_path, "other.safetensors", single=2), checkpoint.path)
        assert reader.tensor("img_in.weight").equal(first)
