"""One sentence for everything that a user can do wrong."""

import os
import re
from pathlib import Path

import pytest
import torch
from commands import DEFAULT, LAYER, one_line, tpec
from samples import (
    generator,
    load,
    names_in,
    python,
    save_flux,
    sha256,
    write_raw,
    write_shapes,
)

from tpec.command.cli import main
from tpec.files.checkpoint import open_checkpoint


def nan(folder: Path) -> Path:
    weight = torch.randn(64, 32, generator=generator())
    weight[3, 3] = float("nan")
    return save_flux(folder, extra={f"{LAYER}.weight": weight})


def int8(folder: Path) -> Path:
    return save_flux(folder, extra={f"{LAYER}.weight": torch.ones(64, 32, dtype=torch.int8)})


def quantized(folder: Path) -> Path:
    path = save_flux(folder, "original.safetensors")
    assert tpec("quantize", path, "-o", folder / "model.safetensors", "--method", "nearest", "--quiet") == 0
    return folder / "model.safetensors"


def content(data: bytes):
    def write(folder: Path) -> Path:
        (folder / "model.safetensors").write_bytes(data)
        return folder / "model.safetensors"

    return write


def cut(folder: Path) -> Path:
    path = save_flux(folder)
    os.truncate(path, path.stat().st_size - 1)
    return path


def longer(folder: Path) -> Path:
    path = save_flux(folder)
    path.write_bytes(path.read_bytes() + b"\0")
    return path


def shards_missing(folder: Path) -> Path:
    (folder / "m.safetensors.index.json").write_text('{"weight_map": {"a.weight": "m-1.safetensors"}}')
    return folder


def lone_shard(folder: Path) -> Path:
    return save_flux(folder, "model-00002-of-00003.safetensors")


def clip(folder: Path) -> Path:
    return write_shapes(folder / "model.safetensors", {"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)})


def foreign_names(folder: Path) -> Path:
    entry = {"dtype": "BF16", "shape": [1, 1], "data_offsets": [0, 2]}
    return write_raw(folder / "model.safetensors", {"a\nb\u202e\u20ac.weight": entry}, b"12")


BAD_INPUTS = {
    "missing": (lambda folder: folder / "none.safetensors", "There is no file .*none.safetensors"),
    "empty folder": (lambda folder: folder, "holds neither"),
    "name too long": (lambda folder: folder / ("n" * 300), "name too long"),
    "empty": (content(b""), "is empty"),
    "random": (content(bytes(range(256)) * 9), "claims a header"),
    "zero header": (content(bytes(99)), "not valid JSON"),
    "pickle": (content(b"\x80\x02}q\x00."), "pickled"),
    "LFS pointer": (content(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "GGUF": (content(b"GGUF" + bytes(99)), "GGUF"),
    "120 MB header": (content((120_000_000).to_bytes(8, "little") + b"{}"), "claims a header"),
    "truncated": (cut, "cut short"),
    "trailing byte": (longer, "1 bytes after its last tensor"),
    "NaN": (nan, f"'{LAYER}.weight' holds NaN"),
    "int8": (int8, "quantized already"),
    "quantized": (quantized, "quantized already"),
    "missing shard": (shards_missing, "needs 1 file"),
    "shard alone": (lone_shard, "not complete without model-00001-of-00003.safetensors, model-00003-of-00003"),
    "folder of a shard": (lambda folder: lone_shard(folder).parent, "not complete without model-00001-of-00003"),
    "metadata": (lambda folder: write_raw(folder / "m.safetensors", {"__metadata__": {"a": 1}}), "with safetensors"),
    "CLIP": (clip, "CLIP text encoder"),
    "foreign names": (foreign_names, "not known here"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_sentence(tmp_path: Path, case: str, capsys: pytest.CaptureFixture) -> None:
    make, words = BAD_INPUTS[case]
    path = make(tmp_path)
    before = names_in(tmp_path)
    assert tpec("quantize", path, "-o", tmp_path / "q.safetensors", "--quiet") == 1
    one_line(capsys, words)
    assert names_in(tmp_path) == before


BAD_REQUESTS = {
    "missing folder": (["-o", "none/q.safetensors"], "folder none does not exist"),
    "output is the input": (["-o", "model.safetensors", "--overwrite"], "is the input itself"),
    "output name too long": (["-o", "n" * 300], "too long"),
    "working name too long": (["-o", "n" * 236 + ".safetensors"], "too long"),
    "lock's name too long": (["-o", "n" * 231 + ".safetensors"], "too long"),
    "journal name too long": (["-o", "n" * 228 + ".safetensors"], "too long"),
    "output of another format": (["-o", "q.ckpt"], "q.ckpt would be .* another format.*: end the name in .safetensors"),
    "output for llama.cpp": (["-o", "q.v1.GGUF"], "name of another format"),
    "output named as a shard": (["-o", "q-00001-of-00002.safetensors"], "name of one shard"),
    "output folder that is not there": (["-o", "none/"], "folder none does not exist"),
    "output folder that is a file": (["-o", "model.safetensors/"], "folder model.safetensors does not exist"),
    "output is a dead link": (["-o", "dead.safetensors", "--overwrite"], "link that points nowhere"),
    "bad include": (["--include", "("], "include pattern"),
    "bad exclude": (["--exclude", "*"], "exclude pattern"),
    "everything excluded": (["--exclude", "."], "no layer is left"),
    "top_k 0": (["--top-k", "0"], "top_k is 0"),
    "num_iter -1": (["--num-iter=-1"], "num_iter is -1"),
    "other family": (["--family", "chroma"], "layout of Chroma"),
    "contradiction": (["--family", "flux", "--t5xxl"], "contradict"),
    "unknown device": (["--device", "quantum"], "no device 'quantum'"),
    "missing GPU": (["--device", "cuda:77"], "cuda:77 is not there"),
    "odd GPU": (["--device", "cuda:99999999999999999999"], "device"),
    "no device": (["--device", ""], "device"),
    "half a list": (["--device", "cpu,"], "device"),
    "unfit device": (["--device", "meta"], "not supported"),
    "missing calibration": (["--calibration", "none.safetensors"], "There is no file none.safetensors"),
    "foreign calibration": (["--calibration", "model.safetensors"], "is not a calibration file"),
    "missing report folder": (["--report", "none/r.json"], "report"),
    "report of no kind": (["--report", "r.txt"], r"ends in \.html \(a page to look at\) or \.json"),
    "report is the input": (["--report", "model.safetensors"], "report"),
    "report is the output": (["-o", "q.safetensors", "--report", "q.safetensors"], "report"),
    "same output twice": (["other/model.safetensors", "-o", "other", "--overwrite"], "same name"),
    "same input twice": (["model.safetensors", "--overwrite"], "same name"),
    "same name beside two suffixes": (["model.sft", "--overwrite"], "same name"),
    "two shards of one model": (["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"], "same name"),
    "result of one is the other": ([DEFAULT, "--overwrite"], "is an input itself"),
    "two inputs, one file": (["other/model.safetensors", "-o", "q.safetensors"], "not a folder"),
    "two inputs, one report": (["other/model.safetensors", "--report", "r.json"], "report"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_request_is_one_sentence_before_any_work(tmp_path: Path, case: str, capsys: pytest.CaptureFixture,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, words = BAD_REQUESTS[case]
    (tmp_path / "other").mkdir()
    source, other = save_flux(tmp_path), save_flux(tmp_path / "other")
    (tmp_path / "dead.safetensors").symlink_to("nowhere.safetensors")
    before = sha256(source)
    monkeypatch.chdir(tmp_path)
    assert tpec("quantize", "--method", "nearest", "--quiet", "model.safetensors", *arguments) == 1
    one_line(capsys, words)
    assert names_in(tmp_path) == {"model.safetensors", "other", "dead.safetensors"}
    assert names_in(tmp_path / "other") == {"model.safetensors"}
    assert sha256(source) == sha256(other) == before


@pytest.mark.parametrize("arguments", [
    [], ["paint"], ["quantize", "--method", "gptq", "x"], ["quantize", "--paint", "x"], ["inspect"], ["verify", "x"],
    ["quantize", "--top-k", "x", "x"], ["quantize", "--meth", "nearest", "x"], ["quantize"], ["quantize", "--quiet"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


LIMITED = """import resource, sys
import torch
from tpec.command.cli import main
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (96 << 20),) * 2)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux only")
def test_memory_that_the_system_refuses_is_one_sentence(tmp_path: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in load(save_flux(tmp_path)).items()}
    source = write_shapes(tmp_path / "model.safetensors", shapes | {f"{LAYER}.weight": (8192, 16384)})
    process = python(LIMITED, ["quantize", source, "-o", tmp_path / "q.safetensors", "--quiet", "--device", "cpu"])
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 1
    assert re.fullmatch(r"tpec: Memory ran out[^\n]*\.\n", stderr), stderr
    assert names_in(tmp_path) == {"model.safetensors"}


@pytest.mark.parametrize(("error", "words"), [
    (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), "illegal memory access"),
    (MemoryError(), "Memory ran out"), (PermissionError(13, "Permission denied", "x"), "x cannot be used")])
def test_failures_below_this_program_are_one_sentence(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
                                                      monkeypatch: pytest.MonkeyPatch, error: Exception,
                                                      words: str) -> None:
    """And the next input is worked on."""
    def fail(path: Path) -> object:
        if path.name == "bad.safetensors":
            raise error
        return open_checkpoint(path)

    monkeypatch.setattr("tpec.command.quantize.open_checkpoint", fail)
    (tmp_path / "out").mkdir()
    assert tpec("quantize", tmp_path / "bad.safetensors", "--method", "nearest", "--quiet") == 1
    one_line(capsys, words)
    assert tpec("quantize", tmp_path / "bad.safetensors", source, "-o", tmp_path / "out", "--method", "nearest",
                "--quiet") == 1
    one_line(capsys, words)
    assert names_in(tmp_path / "out") == {DEFAULT}


def test_bad_files_for_the_other_commands(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments in (["inspect", tmp_path / "none"], ["verify", tmp_path / "none", source],
                      ["verify", source, tmp_path / "none"]):
        assert tpec(*arguments) == 1
        one_line(capsys, "There is no file")
    assert tpec("demo", "--folder", source) == 1
    one_line(capsys, "model.safetensors")
