"""File to file: right, repeatable, and nothing left behind when it fails."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from samples import generator, load, names_in, python, same_bits, save_flux, sha256, small_disk

from tpec.check.verify import verify
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.rounding.grid import decode
from tpec.run.pipeline import quantize
from tpec.run.progress import Progress
from tpec.settings import Settings

LINEAR = "single_blocks.0.linear1"
NEAREST = Settings(method="nearest")
ODD = {
    "scalar": torch.tensor(3.5),
    "steps": torch.tensor([1, 2, 3]),
    "mask": torch.tensor([True, False, True]),
    "nothing.weight": torch.zeros(0, 8),
    "patch.weight": torch.randn(4, 3, 2, 2, generator=generator()).half(),
    "double.table": torch.randn(3, 3, generator=generator()).double(),
    "single_blocks.0.extra_norm.weight": torch.randn(8, 8, generator=generator()),
    "odd.bytes": torch.arange(7, dtype=torch.uint8),
    "nan.table": torch.tensor([float("nan"), float("inf"), -0.0]),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_flux(tmp_path)


def run(source: Path, output: Path, settings: Settings = NEAREST, **more: object):
    return quantize(make_plan(open_checkpoint(source), settings), output, **more)


def refused(words: str, source: Path, output: Path, **more: object) -> None:
    before = names_in(source.parent), sha256(source)
    with pytest.raises(TpecError, match=words) as caught:
        run(source, output, **more)
    assert "\n" not in str(caught.value)
    assert (names_in(source.parent), sha256(source)) == before


def test_round_trip(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "q.safetensors"
    report = run(source, output, Settings())
    before, after = load(source), load(output)
    quantized = [name for name, tensor in after.items() if name.endswith(".weight") and tensor.element_size() == 1]
    assert sorted(quantized) == sorted(name for name in before if "_blocks." in name and name.endswith(".weight"))
    for name in quantized:
        layer = name.removesuffix(".weight")
        restored = decode(after[name], after[f"{layer}.weight_scale"])
        error = (restored - before[name].float()).norm() / before[name].float().norm()
        told = next(line for line in report.layers if line.name == layer)
        # The last step, on the leading pair, moves a few weights after the error was taken.
        assert error.item() == pytest.approx(told.relative_error, rel=0.01)
        assert 0.01 < error < 0.05
        assert told.scale == after[f"{layer}.weight_scale"].item() == after[f"{layer}.scale_weight"].item()
    assert report.output == output
    assert report.output_nbytes == output.stat().st_size
    assert report.kind == "diffusion_models"
    assert verify(source, output).ok
    assert names_in(tmp_path) == {"model.safetensors", "q.safetensors"}


def test_tpec_beats_nearest_on_its_metric(tmp_path: Path, source: Path) -> None:
    report = run(source, tmp_path / "q.safetensors", Settings())
    assert all(layer.loss < layer.nearest_loss for layer in report.layers)
    assert all(layer.principal_after <= 1e-5 for layer in report.layers)
    plain = run(source, tmp_path / "n.safetensors")
    assert all(layer.loss == layer.nearest_loss for layer in plain.layers)
    assert plain.error_ratio == 1.0


@pytest.mark.parametrize("method", ["tpec", "nearest"])
def test_two_runs_and_two_lanes_give_the_same_bytes(tmp_path: Path, method: str) -> None:
    source = save_flux(tmp_path, extra=ODD)
    settings = Settings(method=method)
    for name, devices in (("a", ("cpu",)), ("b", ("cpu",)), ("c", ("cpu", "cpu")), ("d", ("cpu",) * 3)):
        report = run(source, tmp_path / name, settings, devices=devices)
        assert len(report.layers) == 13
    assert len({sha256(tmp_path / name) for name in "abcd"}) == 1


def test_kept_tensors_are_bit_exact(tmp_path: Path) -> None:
    source, output = save_flux(tmp_path, extra=ODD), tmp_path / "q.safetensors"
    report = run(source, output, Settings())
    before, after = load(source), load(output)
    kept = {name for name in before if not ("_blocks." in name and name.endswith("lin.weight"))
            and after[name].dtype != torch.float8_e4m3fn}
    assert kept >= ODD.keys()
    assert report.kept == len(kept)
    for name in kept:
        assert same_bits(before[name], after[name]), name


BROKEN = {"a norm": ("single_blocks.0.norm.key_norm.scale", 3), "a bias": (f"{LINEAR}.bias", 5),
          "a kept layer": ("img_in.weight", 7)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("what", BROKEN)
def test_kept_parameters_that_are_not_finite_are_refused_by_name(tmp_path: Path, what: str, value: float) -> None:
    name, at = BROKEN[what]
    tensor = torch.zeros(32, 32).half() if name == "img_in.weight" else torch.zeros(32).bfloat16()
    tensor.view(-1)[at] = value
    source, output = save_flux(tmp_path, extra={name: tensor}), tmp_path / "q.safetensors"
    refused(f"'{name}' holds NaN or infinite values.*keep-nonfinite", source, output)
    report = run(source, output, Settings(method="nearest", keep_nonfinite=True))
    assert report.notes == (f"NaN or infinite values were kept, as in the original, in 1 tensor(s): {name}",)
    assert same_bits(load(output)[name], tensor)
    checked = verify(source, output)
    assert checked.ok and checked.nonfinite == [name] and checked.text().endswith(f"1 tensor(s): {name}")


def test_bad_value_in_any_piece_of_a_large_tensor_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpec.run.memory.PIECE", 64)
    for at in (0, 31, 32, 99):
        tensor = torch.zeros(100).bfloat16()
        tensor[at] = float("inf")
        source = save_flux(tmp_path, extra={"final_layer.linear.bias": tensor})
        refused("'final_layer.linear.bias' holds NaN or infinite", source, tmp_path / "q.safetensors")


def test_buffers_may_hold_anything_and_the_report_says_so_also_after_a_resume(tmp_path: Path) -> None:
    source, output = save_flux(tmp_path, extra=ODD), tmp_path / "q.safetensors"
    words = ("NaN or infinite values were kept, as in the original, in 1 tensor(s): nan.table",)
    assert run(source, output).notes == words
    assert verify(source, output).nonfinite == ["nan.table"]
    calls = []

    def stop(event: Progress) -> None:
        calls.append(event)
        if event.done > 0.9 * event.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "r.safetensors", progress=stop, resume=True, sync_bytes=1)
    report = run(source, tmp_path / "r.safetensors", resume=True)
    assert report.notes == words
    assert sha256(output) == sha256(tmp_path / "r.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_other_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    extra = {f"{LINEAR}.weight": (torch.randn(64, 32, generator=generator()) * 0.1).to(dtype)}
    source, output = save_flux(tmp_path, extra=extra), tmp_path / "q.safetensors"
    run(source, output, Settings())
    assert load(output)[f"{LINEAR}.weight"].dtype == torch.float8_e4m3fn
    assert verify(source, output).errors[LINEAR] < 0.03


@pytest.mark.parametrize("size", [1e-30, 1e38])
@pytest.mark.parametrize("method", ["tpec", "nearest"])
def test_tiny_and_huge_weights_keep_their_accuracy(tmp_path: Path, size: float, method: str) -> None:
    noise = torch.rand(48, 64, generator=generator()) * 2 - 1
    extra = {f"{LINEAR}.weight": (noise * size).bfloat16()}
    source, output = save_flux(tmp_path, extra=extra), tmp_path / "q.safetensors"
    run(source, output, Settings(method=method))
    assert verify(source, output).errors[LINEAR] < 0.03
    assert same_bits(load(output)[f"{LINEAR}.bias"], load(source)[f"{LINEAR}.bias"])


@pytest.mark.parametrize("method", ["tpec", "nearest"])
def test_zero_and_constant_weights_are_exact(tmp_path: Path, method: str) -> None:
    extra = {f"{LINEAR}.weight": torch.zeros(32, 32).bfloat16(),
             "single_blocks.0.linear2.weight": torch.full((32, 32), 0.75).bfloat16()}
    source, output = save_flux(tmp_path, extra=extra), tmp_path / "q.safetensors"
    run(source, output, Settings(method=method))
    after = load(output)
    assert after[f"{LINEAR}.weight"].float().count_nonzero() == 0
    assert verify(source, output).errors["single_blocks.0.linear2"] < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", ["tpec", "nearest"])
def test_one_bad_weight_is_refused_by_name(tmp_path: Path, value: float, method: str) -> None:
    weight = torch.randn(64, 32, generator=generator()).bfloat16()
    weight[40, 7] = value
    source = save_flux(tmp_path, extra={f"{LINEAR}.weight": weight})
    refused(f"'{LINEAR}.weight' holds NaN or infinite", source, tmp_path / "q", settings=Settings(method=method))


def test_metadata_is_carried_over(tmp_path: Path) -> None:
    source = save_flux(tmp_path, metadata={"modelspec.title": "tiny", "note": "umlaut \u00e4"})
    run(source, tmp_path / "q.safetensors")
    metadata = open_checkpoint(tmp_path / "q.safetensors").metadata
    assert metadata["modelspec.title"] == "tiny"
    assert metadata["note"] == "umlaut \u00e4"
    recipe = json.loads(metadata["tpec"])
    assert (recipe["source"], recipe["method"], recipe["family"]) == ("model.safetensors", "nearest", "flux")
    assert str(tmp_path) not in json.dumps(dict(metadata))


def test_output_must_not_be_the_input(tmp_path: Path, source: Path) -> None:
    refused("is the input itself", source, source)
    refused("is the input itself", source, source, overwrite=True)
    link = tmp_path / "link.safetensors"
    link.symlink_to(source)
    refused("is the input itself", source, link, overwrite=True)
    hard = tmp_path / "hard.safetensors"
    os.link(source, hard)
    refused("is the input itself", source, hard, overwrite=True)


def test_output_whose_working_name_is_the_input_is_refused(tmp_path: Path) -> None:
    source = save_flux(tmp_path, "q.safetensors.partial")
    refused("choose another name", source, tmp_path / "q.safetensors")


def test_existing_output_is_kept_unless_overwrite(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "q.safetensors"
    output.write_text("precious")
    refused("exists already", source, output)
    assert output.read_text() == "precious"
    run(source, output, overwrite=True)
    assert verify(source, output).ok


def test_output_that_appears_during_the_run_is_kept(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "q.safetensors"

    def appear(event: Progress) -> None:
        output.write_text("precious")

    with pytest.raises(TpecError, match="exists already"):
        run(source, output, progress=appear)
    assert output.read_text() == "precious"
    assert names_in(tmp_path) == {"model.safetensors", "q.safetensors"}


@pytest.mark.parametrize(("name", "words"), [
    ("none/q.safetensors", "folder .*none does not exist"), (".", "is a folder"), ("n" * 300, "name"),
    ("n" * 250, "name"), ("model.safetensors/q.safetensors", "does not exist")])
def test_impossible_outputs_are_refused(tmp_path: Path, source: Path, name: str, words: str) -> None:
    refused(words, source, tmp_path / name)


def test_output_in_the_current_folder_needs_no_path(tmp_path: Path, source: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(source, Path("q.safetensors"))
    assert verify(source, tmp_path / "q.safetensors").ok


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [0, 5])
def test_exception_from_progress_stops_the_run_and_leaves_nothing(
        tmp_path: Path, source: Path, devices: tuple[str, ...], error: type[BaseException], after: int) -> None:
    calls = []

    def stop(event: Progress) -> None:
        calls.append(event)
        if len(calls) > after:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        run(source, tmp_path / "q.safetensors", devices=devices, progress=stop)
    assert names_in(tmp_path) == {"model.safetensors"}
    run(source, tmp_path / "q.safetensors", devices=devices)


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
def test_listener_that_raises_once_stops_every_thread(tmp_path: Path, source: Path, devices: tuple[str, ...]) -> None:
    """ComfyUI forgets the user's interrupt when it has told one thread."""
    threads: list[int] = []
    stopped_at: list[int] = []

    def stop(event: Progress) -> None:
        threads.append(threading.get_ident())
        # Both lanes, or the writer beside the only one, are at work.
        if len(set(threads)) == 2 and not stopped_at:
            stopped_at.append(len(threads))
            raise ZeroDivisionError("once")

    with pytest.raises(ZeroDivisionError, match="once"):
        run(source, tmp_path / "q.safetensors", Settings(num_iter=50), devices=devices, progress=stop)
    assert stopped_at and len(threads) <= stopped_at[0] + 1
    assert names_in(tmp_path) == {"model.safetensors"}


def test_failing_lane_stops_the_other_within_its_layer(tmp_path: Path) -> None:
    large = torch.randn(1024, 2048, generator=generator())
    bad = torch.full((1100, 1024), float("nan"))
    source = save_flux(tmp_path, extra={f"{LINEAR}.weight": large, "single_blocks.0.linear2.weight": bad})
    calls: Counter[int] = Counter()

    def slow(event: Progress) -> None:
        calls[threading.get_ident()] += 1
        time.sleep(0.2)

    with pytest.raises(TpecError, match="linear2.weight' holds NaN"):
        run(source, tmp_path / "q.safetensors", Settings(exclude="double|modulation"), devices=("cpu", "cpu"),
            progress=slow)
    # The large layer alone would ask 32 times.
    assert max(calls.values(), default=0) < 10
    assert names_in(tmp_path) == {"model.safetensors"}


def test_progress_counts_to_the_end(tmp_path: Path, source: Path) -> None:
    events: list[Progress] = []
    run(source, tmp_path / "q.safetensors", Settings(), progress=events.append)
    assert len(events) > 3 * 13
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert events[-1].done == pytest.approx(events[-1].total)
    assert (events[-1].index, events[-1].count) == (13, 13)
    assert {event.layer for event in events if event.layer} >= {LINEAR, "double_blocks.0.img_mlp.0"}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed on Linux only")
@pytest.mark.parametrize("devices", [("cpu",), ("cpu",) * 3])
def test_lane_that_cannot_be_set_up_leaves_no_file_open(tmp_path: Path, devices: tuple[str, ...]) -> None:
    """The journal's name is too long for the system, the working file's is not; Windows removes no open files."""
    source = save_flux(tmp_path)
    with pytest.raises(TpecError, match="too long") as caught:
        run(source, tmp_path / ("n" * 240), devices=devices)
    held = [link for link in map(os.path.realpath, Path("/proc/self/fd").iterdir()) if link.startswith(str(tmp_path))]
    assert not held and caught.value.__traceback__ is not None
    assert names_in(tmp_path) == {"model.safetensors"}


def test_device_without_room_to_begin_leaves_the_work_to_the_cpu(tmp_path: Path, source: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def no_context(plan: object, device: torch.device, *_: object) -> int:
        if device.type == "cuda":
            raise RuntimeError("CUDA error: out of memory")
        return 1

    monkeypatch.setattr("tpec.run.pipeline.compute_threads", no_context)
    report = run(source, tmp_path / "q.safetensors", devices=("cuda:0",))
    assert report.notes == ("cuda:0 ran out of memory; some layers were computed on the CPU",)
    run(source, tmp_path / "plain.safetensors")
    assert sha256(tmp_path / "q.safetensors") == sha256(tmp_path / "plain.safetensors")


def test_sharded_input_equals_the_single_file(tmp_path: Path, source: Path) -> None:
    from safetensors.torch import save_file

    tensors = load(source)
    folder = tmp_path / "shards"
    folder.mkdir()
    names = sorted(tensors)
    weight_map = {name: f"m-{1 + (at % 2)}.safetensors" for at, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    run(source, tmp_path / "a.safetensors")
    run(folder, tmp_path / "b.safetensors")
    whole, sharded = load(tmp_path / "a.safetensors"), load(tmp_path / "b.safetensors")
    assert whole.keys() == sharded.keys()
    assert all(same_bits(whole[name], sharded[name]) for name in whole)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1536k") as folder:
        yield folder


def test_disk_too_small_is_said_before_the_work(disk: Path, source: Path) -> None:
    (disk / "filler").write_bytes(bytes(1 << 20))
    events: list[Progress] = []
    refused("needs .* make room", source, disk / "q.safetensors", progress=events.append)
    assert not events
    assert names_in(disk) == {"filler"}


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
def test_disk_that_fills_up_during_the_run(disk: Path, source: Path, devices: tuple[str, ...]) -> None:
    def fill(event: Progress) -> None:
        filler = disk / "filler"
        if not filler.exists():
            with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(4096))

    refused("disk of .* is full", source, disk / "q.safetensors", progress=fill, devices=devices)
    assert names_in(disk) == {"filler"}


def test_limit_on_file_sizes(tmp_path: Path, source: Path) -> None:
    """The system refuses to make the file as large as it must be (EFBIG): nothing stays, not even an empty file."""
    resource = pytest.importorskip("resource")
    limit = resource.RLIMIT_FSIZE, (1 << 18, 1 << 18)
    process = python("import sys\nfrom tpec.command.cli import main\nsys.exit(main(sys.argv[1:]))",
                     ["quantize", source, "-o", tmp_path / "q.safetensors", "--quiet"],
                     preexec_fn=lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.setrlimit(*limit)))
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 1
    assert len(stderr.splitlines()) == 1
    assert "takes no file of the size of q.safetensors" in stderr
    assert names_in(tmp_path) == {"model.safetensors"}
