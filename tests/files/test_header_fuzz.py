"""Hostile headers and indexes against the safetensors library; the long run is `python -m benchmarks.fuzz_header`."""

import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from samples import REPOSITORY, environment, write_raw

from benchmarks.fuzz_header import EXCEPTIONS, Disagreement, judge, judge_index, run
from benchmarks.hostile import mutated_header, mutated_index, write_shards
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.files.header import read_header
from tpec.files.shards import shard_map

CORPUS = sorted((REPOSITORY / "tests" / "data" / "headers").glob("*.bin"))
#: Headers below 100 MB that take long or much memory where they are not read with care: the text, and how often.
LARGE = {
    "many sizes": ('{"a":{"dtype":"U8","shape":[', "9,", "9]"),
    "many zero sizes": ('{"a":{"dtype":"U8","shape":[', "0,", '0],"data_offsets":[0,0]}'),
    "many brackets": ('{"a":', "[", ""),
    "long name": ('{"', "n", '":[]'),
    "long unprintable name": ('{"', "\u202e", '":[]'),
    "long digits": ('{"a":', "9", ""),
    "many empty tables": ('{"__metadata__":{"a":[', "{},", "{}]}"),
}


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) >= 40


@pytest.mark.parametrize("case", CORPUS, ids=lambda path: path.stem)
def test_known_hostile_input_is_judged_as_its_name_says(tmp_path: Path, case: Path) -> None:
    """`accept-`, `refuse-`, and `stricter-` for EXCEPTIONS."""
    content = case.read_bytes()
    outcome = judge(content, tmp_path / "m.safetensors")
    wanted = {"accept": "both accept", "refuse": "both refuse", "stricter": "only the library accepts"}
    assert outcome.startswith(wanted[case.stem.partition("-")[0]])


def test_some_seconds_of_mutations(tmp_path: Path) -> None:
    outcomes, faults, _ = run(count=4000, seconds=60, seed=7, folder=tmp_path)
    assert not faults
    assert outcomes["both accept"] > 500 and outcomes["both refuse"] > 500
    assert outcomes["index accepted"] and outcomes["index refused"]
    assert all(any(reason in outcome for reason in EXCEPTIONS) for outcome in outcomes if outcome.startswith("only"))


@given(seed=st.integers(0, 2**64))
@settings(max_examples=150)
def test_any_mutation_is_judged_alike(tmp_path: Path, seed: int) -> None:
    judge(mutated_header(random.Random(seed)), tmp_path / "m.safetensors")


@given(header=st.dictionaries(st.text(max_size=3), st.fixed_dictionaries({
    "dtype": st.sampled_from(["U8", "F32", "F4", "F6_E2M3", "C64", "F8_E8M0"]),
    "shape": st.lists(st.integers(0, 3) | st.sampled_from([2**32, 2**63, 2**64 - 1, 2**64]), max_size=4),
    "data_offsets": st.tuples(st.integers(0, 9), st.integers(0, 9))}), max_size=3), data=st.binary(max_size=16))
@settings(max_examples=300)
def test_any_table_of_tensors_is_judged_alike(tmp_path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    judge(struct.pack("<Q", len(text)) + text + data, tmp_path / "m.safetensors")


@given(seed=st.integers(0, 2**64))
@settings(max_examples=100)
def test_an_index_reads_nothing_out_of_its_folder(tmp_path: Path, seed: int) -> None:
    if not (tmp_path / "loop.safetensors").is_symlink():
        write_shards(tmp_path)
    judge_index(mutated_index(random.Random(seed)), tmp_path / "index.json")


def test_a_disagreement_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge itself: a reader that takes anything, and one that takes nothing, are both found."""
    import benchmarks.fuzz_header as judged

    good = (REPOSITORY / "tests" / "data" / "headers" / "accept-plain.bin").read_bytes()

    def refuse(path: Path) -> None:
        raise TpecError("No.")

    monkeypatch.setattr(judged, "read_header", refuse)
    with pytest.raises(Disagreement, match="the library accepts"):
        judge(good, tmp_path / "m.safetensors")
    monkeypatch.setattr(judged, "read_header", lambda path: ({}, {}, b""))
    with pytest.raises(Disagreement, match="different tensors"):
        judge(good, tmp_path / "m.safetensors")
    with pytest.raises(Disagreement, match="though the library says"):
        judge(good[:-1], tmp_path / "m.safetensors")


@pytest.mark.parametrize("length", [640, 1152, 66176])
def test_header_length_that_begins_like_a_pickle_is_a_length(tmp_path: Path, length: int) -> None:
    """Of all files written with padding one in 4096 has such a header."""
    text = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(length)
    path = write_raw(tmp_path / "m.safetensors", text, b"1")
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04")
    assert deserialize(path.read_bytes())[0][0] == "a"
    assert read_header(path)[0].keys() == {"a"}


@pytest.mark.parametrize("case", LARGE)
def test_header_of_megabytes_is_one_short_sentence(tmp_path: Path, case: str) -> None:
    before, often, after = LARGE[case]
    text = (before + often * (3_000_000 // len(often)) + after + "}").encode()
    with pytest.raises(TpecError) as caught:
        read_header(write_raw(tmp_path / "m.safetensors", text))
        raise TpecError("Many zeros are a shape.")  # the library takes it as well
    assert str(caught.value).isprintable() and len(str(caught.value)) < 2100


@pytest.mark.slow
@pytest.mark.parametrize("size", [100_000_000, 100_000_001])
def test_header_at_the_limit(tmp_path: Path, size: int) -> None:
    text = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(size)
    path = write_raw(tmp_path / "m.safetensors", text, b"1")
    assert judge(path.read_bytes(), path) == ("both accept" if size == 100_000_000 else "both refuse")


def test_index_with_a_tensor_twice_is_refused_by_its_name(tmp_path: Path) -> None:
    write_shards(tmp_path)
    path = tmp_path / "index.json"
    path.write_text('{"weight_map": {"a": "m-00001-of-00002.safetensors", "a": "m-00002-of-00002.safetensors"}}')
    with pytest.raises(TpecError, match="index.json names 'a' twice"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["CON.safetensors", "com1.x.sft", "a:b.safetensors", "..\\m.safetensors",
                                  "\\\\host\\share\\m.sft", "C:m.safetensors", "a\0.safetensors"])
def test_shard_names_that_are_paths_or_devices_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(TpecError, match="not a plain .safetensors file name"):
        shard_map(path)


def test_endless_index_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    with open(path, "wb") as file:
        file.write(b'{"weight_map": ')
        file.truncate(1 << 40)
    with pytest.raises(TpecError, match="too large for an index"):
        shard_map(path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes in folders")
def test_pipe_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    os.mkfifo(path)
    done = subprocess.run([sys.executable, "-m", "tpec", "inspect", path], env=environment(), cwd=REPOSITORY,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "is no file on a disk" in done.stderr and len(done.stderr.splitlines()) == 1
