"""The command line's contract: flags, names and exit codes."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import DEFAULT, LAYER, one_line, tpec
from safetensors.torch import save_file
from samples import (
    REPOSITORY,
    environment,
    load,
    names_in,
    run_cli,
    save_flux,
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


def test_report_is_a_page_where_its_name_says_so(source: Path, tmp_path: Path) -> None:
    output, report = tmp_path / "q.safetensors", tmp_path / "r.html"
    assert tpec("quantize", source, "-o", output, "--report", report, "--method", "nearest", "--quiet") == 0
    text = report.read_text("utf-8")
    assert text.startswith("<!doctype html>") and f"{LAYER}</code>" in text
    assert str(tmp_path) not in text
    assert names_in(tmp_path) == {"model.safetensors", "q.safetensors", "r.html"}


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


def test_keep_nonfinite_flag(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bias = torch.full((384,), float("nan")).bfloat16()
    source, output = save_flux(tmp_path, extra={"double_blocks.0.img_attn.qkv.bias": bias}), tmp_path / "q.safetensors"
    assert tpec("quantize", source, "-o", output, "--method", "nearest", "--quiet") == 1
    one_line(capsys, "'double_blocks.0.img_attn.qkv.bias' holds NaN.*--keep-nonfinite")
    assert tpec("quantize", source, "-o", output, "--method", "nearest", "--keep-nonfinite") == 0
    assert recipe(output)["keep_nonfinite"] is True
    assert tpec("verify", source, output) == 0
    assert capsys.readouterr().out.count("NaN or infinite values were kept") == 2


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
    assert re.fullmatch(r"tpec: There is no file .*none.safetensors: check its name\.\n", done.stderr)


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
