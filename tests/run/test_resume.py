"""Killed at any point and resumed: the same bytes. A changed source or setting is refused."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from samples import names_in, python, save_flux, sha256

from tpec.check.verify import verify
from tpec.command.cli import main
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.files.partial import finished, job_digest, journal_paths, partial_path
from tpec.model.plan import make_plan
from tpec.run.pipeline import quantize
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration
from tpec.statistics.inputs import Gram, HeldInputs

#: What the command line does with --resume, but its journal is synced after every tensor, so that small models can be
#: caught half done.
EAGER = """import sys
from tpec.files.checkpoint import open_checkpoint
from tpec.run.pipeline import quantize
from tpec.model.plan import make_plan
from tpec.settings import Settings
quantize(make_plan(open_checkpoint(sys.argv[1]), Settings()), sys.argv[2], resume=True, sync_bytes=1)"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_flux(tmp_path, single=6)


def tpec(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def journal(output: Path) -> list[dict]:
    return [json.loads(line) for path in journal_paths(output) for line in path.read_text().splitlines()]


def killed(source: Path, output: Path, lines: int) -> int:
    """Start, SIGKILL once the journal holds so many lines, and return how many tensors were durable."""
    process = python(EAGER, [source, output])
    while process.poll() is None and sum(path.read_text().count("\n") for path in journal_paths(output)) < lines:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert not output.exists()
    return len(journal(output)) - 1


@pytest.fixture
def stopped(tmp_path: Path, source: Path) -> Path:
    """An output of which a part is done: stopped from within, with the journal flushed as far as it had got."""
    output = tmp_path / "q.safetensors"
    seen = []

    def stop(event) -> None:
        seen.append(event.index)
        if event.index == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(make_plan(open_checkpoint(source), Settings()), output, progress=stop, resume=True, sync_bytes=1)
    assert len(journal(output)) > 5
    return output


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 9, 30])
def test_sigkill_then_resume_gives_the_same_bytes(tmp_path: Path, source: Path, lines: int) -> None:
    whole, output = tmp_path / "whole.safetensors", tmp_path / "q.safetensors"
    assert tpec("quantize", source, "-o", whole, "--quiet") == 0
    done = killed(source, output, lines)
    assert done >= lines - 1
    assert tpec("quantize", source, "-o", output, "--resume", "--quiet") == 0
    assert sha256(output) == sha256(whole)
    assert names_in(tmp_path) == {"model.safetensors", "whole.safetensors", "q.safetensors"}


@pytest.mark.slow
def test_killed_twice_at_random_moments(tmp_path: Path, source: Path) -> None:
    whole, output = tmp_path / "whole.safetensors", tmp_path / "q.safetensors"
    assert tpec("quantize", source, "-o", whole, "--quiet") == 0
    first = killed(source, output, random.Random(5).randrange(2, 12))
    second = killed(source, output, first + 2 + random.Random(6).randrange(2, 12))
    assert second > first
    assert tpec("quantize", source, "-o", output, "--resume", "--quiet") == 0
    assert sha256(output) == sha256(whole)


def test_resume_does_not_repeat_what_is_done(source: Path, stopped: Path) -> None:
    done = {line["done"] for line in journal(stopped) if line.get("facts")}
    assert done
    layers = []
    report = quantize(make_plan(open_checkpoint(source), Settings()), stopped, resume=True,
                      progress=lambda event: layers.append((event.layer, event.index)))
    assert not {f"{layer}.weight" for layer, _ in layers} & done
    assert layers[0][1] == len(done)
    assert len(report.layers) == 28
    whole = stopped.with_name("whole.safetensors")
    straight = quantize(make_plan(open_checkpoint(source), Settings()), whole)
    assert sha256(stopped) == sha256(whole)
    assert [line.loss for line in report.layers] == [line.loss for line in straight.layers]


def test_resume_with_another_number_of_lanes(tmp_path: Path, source: Path, stopped: Path) -> None:
    plan = make_plan(open_checkpoint(source), Settings())
    quantize(plan, stopped, resume=True, devices=("cpu", "cpu"))
    quantize(plan, tmp_path / "whole.safetensors")
    assert sha256(stopped) == sha256(tmp_path / "whole.safetensors")


def test_line_cut_by_the_crash_does_not_count(tmp_path: Path, source: Path, stopped: Path) -> None:
    path = journal_paths(stopped)[0]
    path.write_bytes(path.read_bytes()[:-9])
    plan = make_plan(open_checkpoint(source), Settings())
    quantize(plan, stopped, resume=True)
    quantize(plan, tmp_path / "whole.safetensors")
    assert sha256(stopped) == sha256(tmp_path / "whole.safetensors")


def test_line_cut_by_the_crash_costs_that_line_only(source: Path, stopped: Path) -> None:
    """What the resumed run finishes is known to the one after it, although the first was killed within a line."""
    path = journal_paths(stopped)[0]
    path.write_bytes(path.read_bytes()[:-9])
    plan = make_plan(open_checkpoint(source), Settings())
    events = []

    def stop(event) -> None:
        events.append(event)
        if len({event.layer for event in events}) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(plan, stopped, progress=stop, resume=True, sync_bytes=1)
    begun = {line["done"] for line in journal(stopped) if line.get("facts")}
    assert {f"{event.layer}.weight" for event in events[:1]} <= begun
    seen = []
    quantize(plan, stopped, progress=lambda event: seen.append(f"{event.layer}.weight"), resume=True)
    assert not begun & set(seen)


def test_nothing_to_resume_starts_at_the_beginning(tmp_path: Path, source: Path) -> None:
    assert tpec("quantize", source, "-o", tmp_path / "q.safetensors", "--resume", "--quiet", "--method", "nearest") == 0
    assert verify(source, tmp_path / "q.safetensors").ok


def refused(source: Path, output: Path, words: str, **settings: object) -> None:
    before = {path.name: sha256(path) for path in source.parent.iterdir()}
    with pytest.raises(TpecError, match=words) as caught:
        quantize(make_plan(open_checkpoint(source), Settings(**settings)), output, resume=True)
    assert "\n" not in str(caught.value)
    assert {path.name: sha256(path) for path in source.parent.iterdir()} == before


def test_changed_setting_is_refused(source: Path, stopped: Path) -> None:
    for settings in ({"top_k": 3}, {"num_iter": 1}, {"method": "nearest"}, {"exclude": "img"},
                     {"format": "scaled_fp8"}):
        refused(source, stopped, "source file or a setting changed", **settings)


@pytest.mark.parametrize("change", ["value", "time", "file", "longer"])
def test_changed_source_is_refused(source: Path, stopped: Path, change: str) -> None:
    if change == "value":
        content = bytearray(source.read_bytes())
        content[-1] ^= 1
        source.write_bytes(content)
    elif change == "time":
        os.utime(source, ns=(1, 1))
    elif change == "file":
        source.unlink()
        save_flux(source.parent, single=6)
    else:
        save_flux(source.parent, single=7)
    refused(source, stopped, "source file or a setting changed")


@pytest.mark.parametrize("damage", ["shorter", "header"])
def test_damaged_working_file_is_refused(source: Path, stopped: Path, damage: str) -> None:
    partial = partial_path(stopped)
    if damage == "shorter":
        os.truncate(partial, partial.stat().st_size - 1)
    else:
        with open(partial, "r+b") as file:
            file.write(bytes(8))
    refused(source, stopped, "not what its journal says")


def test_resume_keeps_an_existing_output(source: Path, stopped: Path) -> None:
    stopped.write_text("precious")
    refused(source, stopped, "exists already")
    assert stopped.read_text() == "precious"


def test_stale_working_file_is_replaced_without_resume(tmp_path: Path, source: Path, stopped: Path) -> None:
    partial_path(stopped).write_bytes(b"old")
    assert tpec("quantize", source, "-o", stopped, "--quiet", "--method", "nearest") == 0
    assert verify(source, stopped).ok
    assert names_in(tmp_path) == {"model.safetensors", "q.safetensors"}


def test_interrupt_with_resume_keeps_the_work(tmp_path: Path, source: Path, stopped: Path) -> None:
    assert names_in(tmp_path) == {"model.safetensors", "q.safetensors.partial", "q.safetensors.partial.journal0"}


def stats(width: int, size: float) -> HeldInputs:
    return HeldInputs(torch.zeros(width), size, 1000, Gram(torch.eye(width) * size))


def test_working_file_without_a_synced_line_is_begun_anew(source: Path, tmp_path: Path) -> None:
    """Killed in the first seconds: what is in the file is unknown, for example the input scales of other statistics."""
    output = tmp_path / "q.safetensors"
    plan = make_plan(open_checkpoint(source), Settings(matmul="fp8", num_iter=0))
    layers = {layer.linear_in_model: layer.shape for layer in plan.of("quantize")}

    def calibration(size: float) -> Calibration:
        groups = {name: stats(shape[1], size) for name, shape in layers.items()}
        return Calibration(groups, {name: name for name in layers}, "hash")

    def stop(event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(plan, output, calibration=calibration(1.0), progress=stop, resume=True)
    assert not journal(output)
    quantize(plan, output, calibration=calibration(2.0), resume=True)
    quantize(plan, tmp_path / "whole", calibration=calibration(2.0))
    assert sha256(output) == sha256(tmp_path / "whole")


def test_input_scales_of_other_statistics_are_not_resumed(source: Path, tmp_path: Path) -> None:
    """Rounding to nearest asks nothing of the statistics, the input scales in the file do."""
    output = tmp_path / "q.safetensors"
    plan = make_plan(open_checkpoint(source), Settings(method="nearest", matmul="fp8"))
    layers = {layer.linear_in_model: layer.shape for layer in plan.of("quantize")}

    def calibration(size: float) -> Calibration:
        groups = {name: stats(shape[1], size) for name, shape in layers.items()}
        return Calibration(groups, {name: name for name in layers}, "hash")

    def stop(event) -> None:
        if event.index == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(plan, output, calibration=calibration(1.0), progress=stop, resume=True, sync_bytes=1)
    with pytest.raises(TpecError, match="a setting changed"):
        quantize(plan, output, calibration=calibration(2.0), resume=True)
    quantize(plan, output, calibration=calibration(1.0), resume=True)
    quantize(plan, tmp_path / "whole", calibration=calibration(1.0))
    assert sha256(output) == sha256(tmp_path / "whole")


def test_job_digest_follows_everything_that_matters(source: Path) -> None:
    from tpec.model.formats import make_layout

    plan = make_plan(open_checkpoint(source), Settings())
    other = make_plan(open_checkpoint(source), Settings(format="comfy_quant"))
    layouts = make_layout(plan, {}), make_layout(other, {})
    identity = plan.checkpoint.identity()
    digests = {job_digest(layouts[0], identity, {}), job_digest(layouts[1], identity, {}),
               job_digest(layouts[0], identity | {"size": [0]}, {}), job_digest(layouts[0], identity, {"a": 1})}
    assert len(digests) == 4
    assert job_digest(layouts[0], identity, {}) in digests
    assert finished(source.with_name("none"), layouts[0], "x") is None
