"""The command line's contract: flags, names, exit codes, and one sentence for everything a user can do wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import (
    REPOSITORY,
    environment,
    generator,
    load,
    names_in,
    python,
    run_cli,
    save_flux,
    sha256,
    t5xxl_shapes,
    weights,
    write_raw,
    write_shapes,
)

from tpec import __version__
from tpec.command.arguments import make_parser
from tpec.command.cli import main
from tpec.command.demo import flux_shapes
from tpec.files.checkpoint import open_checkpoint

LAYER = "single_blocks.0.linear1"
DEFAULT = "model_float8_e4m3fn_scaled_learned_svd.safetensors"


@pytest.fixture(autouse=True)
def same_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_flux(tmp_path)


def tpec(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def one_line(capsys: pytest.CaptureFixture, words: str) -> None:
    error = capsys.readouterr().err
    assert re.fullmatch(r"tpec: [^\n]+\.\n", error), error
    assert re.search(words, error), error
    assert "Traceback" not in error


def recipe(path: Path) -> dict[str, object]:
    return json.loads(open_checkpoint(path).metadata["tpec"])


def test_default_name_is_that_of_the_published_script(source: Path, capsys: pytest.CaptureFixture) -> None:
    assert tpec("quantize", source, "--method", "nearest") == 0
    assert tpec("verify", source, source.with_name(DEFAULT)) == 0
    out = capsys.readouterr().out
    assert f"saved {source.with_name(DEFAULT)}" in out
    assert "Flux" in out
    assert tpec("quantize", source, "--method", "nearest", "--keep_distillation", "--quiet") == 0
    name = "model_float8_e4m3fn_scaled_learned_nodistill_svd.safetensors"
    assert names_in(source.parent) == {"model.safetensors", DEFAULT, name}


def test_flags_of_the_published_script(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "q.safetensors"
    assert tpec("quantize", "--input", source, "--output", output, "--keep_distillation", "--calib_samples", 3072,
                "--num_iter", 1, "--top_k", 2) == 0
    assert {"top_k": 2, "num_iter": 1, "keep_distillation": True}.items() <= recipe(output).items()
    assert "calib_samples is not used" in capsys.readouterr().out


def test_flags_with_dashes(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "q.safetensors"
    assert tpec("quantize", source, "-o", output, "--keep-distillation", "--calib-samples", 1, "--num-iter", 0,
                "--top-k", 3, "--family", "flux", "--format", "comfy_quant", "--matmul", "fp8", "--include", "img_in",
                "--exclude", r"_mod\.", "--device", "cpu", "--quiet") == 0
    assert recipe(output) == {
        "version": __version__, "source": "model.safetensors", "family": "flux", "method": "tpec",
        "format": "comfy_quant", "matmul": "fp8", "keep_distillation": True, "num_iter": 0, "top_k": 3,
        "include": "img_in", "exclude": r"_mod\."}
    tensors = load(output)
    assert tensors["img_in.weight"].dtype == torch.float8_e4m3fn
    assert tensors["double_blocks.0.img_mod.lin.weight"].dtype == torch.bfloat16


def test_t5xxl_flag(tmp_path: Path) -> None:
    path = write_shapes(tmp_path / "t5.safetensors", t5xxl_shapes())
    assert tpec("quantize", path, "-o", tmp_path / "q.safetensors", "--t5xxl", "--method", "nearest", "--quiet") == 0
    assert not any("decoder" in name or "lm_head" in name for name in load(tmp_path / "q.safetensors"))


def test_parts_of_a_full_checkpoint(tmp_path: Path) -> None:
    prefixes = {"model.diffusion_model.": flux_shapes(128, 1, 1), "text_encoders.t5xxl.transformer.": t5xxl_shapes()}
    source, output = tmp_path / "all.safetensors", tmp_path / "q.safetensors"
    shapes = {prefix + name: shape for prefix, its in prefixes.items() for name, shape in its.items()}
    save_file(weights(shapes | {"vae.decoder.conv_in.weight": (8, 4, 3, 3)}), source)
    done = {}
    for flags in ((), ("--part", "t5xxl"), ("--only-part",), ("--part", "t5xxl", "--only-part")):
        assert tpec("quantize", source, "-o", output, "--overwrite", "--method", "nearest", "--quiet", *flags) == 0
        assert tpec("verify", source, output) == 0
        tensors = load(output)
        done[flags] = tuple(any(name.startswith(prefix) and tensor.dtype == torch.float8_e4m3fn and tensor.dim() == 2
                                for name, tensor in tensors.items()) for prefix in prefixes)
        kept = {name.partition(".")[0] for name in tensors}
        assert ("vae" in kept) is ("--only-part" not in flags)
        assert ("text_encoders" in kept) is (flags != ("--only-part",))
    assert done == {(): (True, False), ("--part", "t5xxl"): (True, True), ("--only-part",): (True, False),
                    ("--part", "t5xxl", "--only-part"): (True, True)}
    for names in ("clip_g", "t5xxl, clip_g"):
        assert tpec("quantize", source, "-o", output, "--part", names) == 1


def test_quiet_prints_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert tpec("quantize", source, "-o", tmp_path / "q.safetensors", "--method", "nearest", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_dry_run_shows_the_table_and_writes_nothing(source: Path, capsys: pytest.CaptureFixture) -> None:
    assert tpec("quantize", source, "--dry-run") == 0
    out = capsys.readouterr().out
    assert re.search(rf"quantize +BF16 +896x128 +{LAYER}.weight +\(Linear of a transformer block\)", out)
    assert re.search(r"keep +BF16 +128x64 +img_in.weight +\(input projection, sensitive\)", out)
    assert "needs about" in out
    assert names_in(source.parent) == {"model.safetensors"}


def test_report_is_json_without_folders(source: Path, tmp_path: Path) -> None:
    output, report = tmp_path / "q.safetensors", tmp_path / "r.json"
    assert tpec("quantize", source, "-o", output, "--report", report, "--quiet") == 0
    data = json.loads(report.read_text())
    assert str(tmp_path) not in report.read_text()
    assert (data["output"], data["source"], data["kind"]) == ("q.safetensors", "model.safetensors", "diffusion_models")
    assert len(data["layers"]) == 13
    assert all(line["loss"] <= line["nearest_loss"] for line in data["layers"])
    assert data["stages"].keys() == {"read", "compute", "write"}
    assert data["output_nbytes"] == output.stat().st_size


def test_inspect_says_what_a_file_is_and_what_would_become_of_it(source: Path, tmp_path: Path,
                                                                 capsys: pytest.CaptureFixture) -> None:
    assert tpec("inspect", source, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["family"], data["quantizable"], data["formats"]) == ("flux", 13, [])
    assert {line["action"] for line in data["layers"]} == {"quantize", "keep"}
    assert tpec("inspect", source) == 0
    short = capsys.readouterr().out
    assert "13 layers would become FP8" in short and LAYER not in short
    assert re.search(r"^quantize +13 tensors +[\d.]+ GB  Linear of a transformer block$", short, re.MULTILINE)
    assert tpec("inspect", source, "--all") == 0
    every = capsys.readouterr().out
    assert all(name in every for name in open_checkpoint(source).tensors)
    assert re.search(rf"^quantize BF16 +896x128  {LAYER}.weight  \(Linear of a transformer block\)$", every,
                     re.MULTILINE)
    output = tmp_path / "q.safetensors"
    assert tpec("quantize", source, "-o", output, "--method", "nearest", "--quiet") == 0
    assert tpec("inspect", output, "--json") == 1
    data = json.loads(capsys.readouterr().out)
    assert data["formats"] == ["comfy_quant", "scaled_fp8", "header metadata"]
    assert "quantized already" in data["refused"]
    for flags in ((), ("--all",)):
        assert tpec("inspect", output, *flags) == 1
        captured = capsys.readouterr()
        assert "not quantizable: q.safetensors is quantized already" in captured.out and captured.err == ""
        assert (f"{LAYER}.weight_scale" in captured.out) is bool(flags)


def test_verify_exit_codes(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "q.safetensors"
    assert tpec("quantize", source, "-o", output, "--method", "nearest", "--quiet") == 0
    assert tpec("verify", source, output) == 0
    assert "13 FP8 layers" in capsys.readouterr().out
    content = bytearray(output.read_bytes())
    content[open_checkpoint(output).tensors["img_in.weight"].start] ^= 1
    output.write_bytes(content)
    assert tpec("verify", source, output) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "img_in.weight should be unchanged" in captured.err


def test_several_inputs_go_on_after_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, last = save_flux(tmp_path, "a.safetensors"), save_flux(tmp_path, "c.safetensors")
    broken = tmp_path / "b.safetensors"
    broken.write_bytes(first.read_bytes()[:-1])
    results = tmp_path / "results"
    results.mkdir()
    assert tpec("quantize", first, broken, last, "-o", results, "--method", "nearest") == 1
    captured = capsys.readouterr()
    assert names_in(results) == {DEFAULT.replace("model", name) for name in "ac"}
    assert len([line for line in captured.err.splitlines() if line.startswith("tpec: ")]) == 1
    table = captured.out.splitlines()[-4:]
    assert [line.split()[0] for line in table[1:]] == ["a.safetensors", "b.safetensors", "c.safetensors"]
    assert [line.split()[-1] == "failed" for line in table[1:]] == [False, True, False]


def test_several_good_inputs(tmp_path: Path) -> None:
    paths = [save_flux(tmp_path, f"{name}.safetensors") for name in "ab"]
    assert tpec("quantize", *paths, "--method", "nearest", "--quiet") == 0
    assert names_in(tmp_path) == {"a.safetensors", "b.safetensors", *(DEFAULT.replace("model", n) for n in "ab")}


def test_wildcards_that_the_shell_passed_on(tmp_path: Path) -> None:
    """Windows shells do; a file that has the very name is meant before any pattern."""
    for name in ("a", "c", "long", "b[1]", "b1"):
        save_flux(tmp_path, f"{name}.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    assert tpec("quantize", tmp_path / "[ac].safetensors", tmp_path / "b[1].safetensors", "-o", out, "--method",
                "nearest", "--quiet") == 0
    assert names_in(out) == {DEFAULT.replace("model", name) for name in ("a", "c", "b[1]")}


@pytest.mark.parametrize(("given", "written"), [
    ("out", "out.safetensors"), ("my_model_v1.5", "my_model_v1.5.safetensors"), ("out.sft", "out.sft"),
    ("OUT.SafeTensors", "OUT.SafeTensors"), ("folder.d/", f"folder.d/{DEFAULT}"), ("folder.d", f"folder.d/{DEFAULT}")])
def test_output_is_named_so_that_readers_know_it(source: Path, tmp_path: Path, given: str, written: str,
                                                 capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "folder.d").mkdir()
    assert tpec("quantize", source, "-o", f"{tmp_path}/{given}", "--method", "nearest") == 0
    assert f"saved {tmp_path / written}" in capsys.readouterr().out
    assert tpec("verify", source, tmp_path / written) == 0


@pytest.mark.parametrize("name", ["m.safetensors.index.fp16.json", "folder"])
def test_shards_are_quantized_as_one_model(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    tensors = load(save_flux(tmp_path))
    names = sorted(tensors)
    halves = {f"m-0000{at}-of-00002.safetensors": names[at - 1::2] for at in (1, 2)}
    for file, part in halves.items():
        save_file({key: tensors[key] for key in part}, folder / file)
    index = {"weight_map": {key: file for file, part in halves.items() for key in part}}
    (folder / "m.safetensors.index.fp16.json").write_text(json.dumps(index))
    source = folder if name == "folder" else folder / name
    assert tpec("quantize", source, "--method", "nearest", "--quiet") == 0
    output = folder / DEFAULT.replace("model", "folder" if name == "folder" else "m.fp16")
    assert tpec("verify", tmp_path / "model.safetensors", output) == 0


def test_large_metadata_is_left_out_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A header just below the limit would grow over it."""
    source = save_flux(tmp_path, metadata={"modelspec.thumbnail": "A" * 99_992_000, "modelspec.title": "tiny"})
    output = tmp_path / "q.safetensors"
    assert tpec("quantize", source, "-o", output, "--method", "nearest") == 0
    assert "this metadata of the source was left out: modelspec.thumbnail\n" in capsys.readouterr().out
    checkpoint = open_checkpoint(output)
    assert checkpoint.metadata["modelspec.title"] == "tiny"
    assert "modelspec.thumbnail" not in checkpoint.metadata
    assert load(output).keys() == checkpoint.tensors.keys()
    assert tpec("verify", source, output) == 0


def test_output_folder_for_one_input(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert tpec("quantize", source, "-o", tmp_path / "out", "--method", "nearest", "--quiet") == 0
    assert names_in(tmp_path / "out") == {DEFAULT}


def test_overwrite(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "q.safetensors"
    output.write_text("precious")
    assert tpec("quantize", source, "-o", output, "--method", "nearest") == 1
    assert "exists already" in capsys.readouterr().err
    assert output.read_text() == "precious"
    assert tpec("quantize", source, "-o", output, "--method", "nearest", "--overwrite", "--quiet") == 0
    assert tpec("verify", source, output) == 0


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


def test_keep_nonfinite_flag(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bias = torch.full((384,), float("nan")).bfloat16()
    source, output = save_flux(tmp_path, extra={"double_blocks.0.img_attn.qkv.bias": bias}), tmp_path / "q.safetensors"
    assert tpec("quantize", source, "-o", output, "--method", "nearest", "--quiet") == 1
    one_line(capsys, "'double_blocks.0.img_attn.qkv.bias' holds NaN.*--keep-nonfinite")
    assert tpec("quantize", source, "-o", output, "--method", "nearest", "--keep-nonfinite") == 0
    assert recipe(output)["keep_nonfinite"] is True
    assert tpec("verify", source, output) == 0
    assert capsys.readouterr().out.count("NaN or infinite values were kept") == 2


def test_bad_files_for_the_other_commands(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments in (["inspect", tmp_path / "none"], ["verify", tmp_path / "none", source],
                      ["verify", source, tmp_path / "none"]):
        assert tpec(*arguments) == 1
        one_line(capsys, "There is no file")
    assert tpec("demo", "--folder", source) == 1
    one_line(capsys, "model.safetensors")


def test_version_and_help(capsys: pytest.CaptureFixture) -> None:
    for arguments, words in ((["--version"], __version__), (["--help"], "quantize"), (["quantize", "-h"], "--top-k")):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert words in capsys.readouterr().out


def test_help_is_in_groups_with_examples(capsys: pytest.CaptureFixture) -> None:
    for command, words in (("quantize", ("which layers become FP8:", "how they are rounded:", "examples:")),
                           ("inspect", ("--all", "exit code is 1", "examples:"))):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        out = capsys.readouterr().out
        assert all(word in out for word in words)
        assert max(map(len, out.splitlines())) <= 120
        # Every example parses.
        for line in re.findall(rf"^  tpec ({command} .*?)(?:   .*)?$", out, re.MULTILINE):
            make_parser().parse_args(line.partition(" >")[0].split())


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    shapes = {"a\nb\u20ac\u202e.weight": (1, 1)}
    path = write_raw(tmp_path / "m\u00e4\u20ac.safetensors", {
        name: {"dtype": "BF16", "shape": [1, 1], "data_offsets": [0, 2]} for name in shapes}, b"12")
    for arguments, code in ((["inspect", path, "--all"], 1),
                            (["quantize", path, "--include", "weight", "--dry-run"], 0)):
        done = subprocess.run([sys.executable, "-m", "tpec", *arguments], env=environment() | {
            "PYTHONIOENCODING": "ascii"}, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
        assert done.returncode == code, done.stderr
        assert "\\u20ac" in done.stdout
        assert "Traceback" not in done.stderr


def test_module_exit_code_and_stderr(tmp_path: Path) -> None:
    done = run_cli("quantize", tmp_path / "none.safetensors")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"tpec: There is no file .*none.safetensors\.\n", done.stderr)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_nothing(tmp_path: Path, sent: signal.Signals) -> None:
    source = save_flux(tmp_path, single=40)
    process = subprocess.Popen([sys.executable, "-m", "tpec", "quantize", str(source), "--quiet", "--num-iter", "50"],
                               env=environment(), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
                               # A shell that runs the tests in the background ignores SIGINT, and its children would.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while len(names_in(tmp_path)) < 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 130
    assert stderr == "Interrupted.\n"
    assert names_in(tmp_path) == {"model.safetensors"}
