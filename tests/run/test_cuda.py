"""The CUDA path: the Triton kernel against the torch one, and whole files."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import REPOSITORY
from torch.nn import Linear, Sequential

from tpec.check.verify import verify
from tpec.command.demo import demo_tensors
from tpec.files.checkpoint import Reader, open_checkpoint
from tpec.files.header import TensorInfo
from tpec.files.plain import write_safetensors
from tpec.model.plan import TensorPlan, make_plan
from tpec.rounding.grid import round_to_grid
from tpec.rounding.kernels import TRITON_BLOCK, round_block_torch
from tpec.rounding.layer import Rounding, check_finite, chunk_size, quantize_tpec
from tpec.rounding.metric import DenseMetric
from tpec.rounding.principal import data_free_metric, principal_components
from tpec.rounding.rows import RowCoupling
from tpec.run.pipeline import quantize
from tpec.run.progress import Halt
from tpec.run.tasks import Task
from tpec.run.transfers import Buffers, Download, Upload
from tpec.settings import Settings
from tpec.statistics.backward import GradientCollector
from tpec.statistics.calibration import Calibration
from tpec.statistics.gradients import HeldGradients
from tpec.statistics.storage import open_calibration, save_calibration
from tpec.statistics.sums import WIDTH_LIMIT
from tpec.statistics.watching import Collector

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda", 0)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(CUDA)


def test_grid_is_the_same_as_on_the_cpu() -> None:
    x = torch.cat([random(1 << 16) * 100, random(1 << 16) * 0.01])
    assert torch.equal(round_to_grid(x).cpu(), round_to_grid(x.cpu()))


SIZES = [(TRITON_BLOCK, 1), (TRITON_BLOCK, 1000), (TRITON_BLOCK - 1, 77), (64, 300), (1, 33), (17, 4096)]


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_triton_block_equals_torch(columns: int, rows: int) -> None:
    triton_block = pytest.importorskip("tpec.rounding.kernels.triton_block")
    if not triton_block.available():
        pytest.skip("Triton cannot compile here")
    base = random(columns, rows) * 60
    targets = base + random(columns, rows, seed=1)
    coupling = random(columns, columns, seed=2) * 0.03
    got, expected = torch.empty_like(base), torch.empty_like(base)
    changes, in_place = targets.clone(), base.clone()
    triton_block.round_block_triton(changes, base, coupling, got)
    round_block_torch(targets.clone(), base, coupling, expected)
    triton_block.round_block_triton(targets.clone(), in_place, coupling, in_place)
    # A value on a tie may fall to the other side, and later columns of its row with it.
    rows_equal = (got == expected).all(0).float().mean()
    assert rows_equal > 0.95
    assert (got == expected).float().mean() > 0.99
    assert torch.equal(round_to_grid(got), got)
    assert torch.equal(got, in_place) and torch.equal(changes, got - base)


def test_triton_block_keeps_what_is_not_finite_as_torch_does() -> None:
    triton_block = pytest.importorskip("tpec.rounding.kernels.triton_block")
    if not triton_block.available():
        pytest.skip("Triton cannot compile here")
    targets = random(40, 5) * 60
    targets[3, 0], targets[7, 1], targets[9, 2] = float("nan"), float("inf"), -float("inf")
    coupling, results = torch.zeros(40, 40, device=CUDA), []
    for rounder in (triton_block.round_block_triton, round_block_torch):
        values = torch.empty_like(targets)
        rounder(targets.clone(), torch.zeros_like(targets), coupling, values)
        results.append(values)
    assert results[0][3, 0].isnan() and results[0][7, 1] == 448 and results[0][9, 2] == -448
    assert torch.equal(*(values.nan_to_num(1e6) for values in results))


@pytest.mark.parametrize("shape", [(384, 1536), (1000, 333)])
def test_layer_like_on_the_cpu(shape: tuple[int, int]) -> None:
    weight = (random(*shape) * 0.02).bfloat16()
    losses = []
    for device in (CUDA, torch.device("cpu")):
        w = weight.to(device)
        largest = check_finite("w", w)
        components = principal_components(w, largest, 24, chunk_size(device))
        metric = data_free_metric(components, 2.0)
        facts = quantize_tpec(w, largest, Rounding(metric, 1, components), chunk_size(device)).facts
        losses.append((facts.loss / facts.weight_norm2).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_dense_metric_like_on_the_cpu() -> None:
    x = random(4096, 256) * torch.logspace(0, 1, 256, device=CUDA)
    moment = x.T @ x / 4096 + torch.eye(256, device=CUDA)
    weight = random(512, 256, seed=4).bfloat16()
    codes = []
    for device in (CUDA, torch.device("cpu")):
        metric = DenseMetric(moment.to(device), torch.arange(256, device=device))
        w = weight.to(device)
        codes.append(quantize_tpec(w, check_finite("w", w), Rounding(metric, 2), 1 << 20).codes.cpu())
    same = (codes[0].view(torch.uint8) == codes[1].view(torch.uint8)).float().mean()
    assert same > 0.98


def test_coupled_rows_like_on_the_cpu() -> None:
    moment, runs = (a @ a.mT / 512 + torch.eye(256, device=CUDA) for a in (random(256, 512), random(2, 256, 512)))
    weight, losses = random(500, 256, seed=4).bfloat16(), []
    runs[1, 244:], runs[1, :, 244:] = 0, 0
    for device in (CUDA, torch.device("cpu")):
        w, metric = weight.to(device), DenseMetric(moment.to(device), torch.arange(256, device=device))
        coupling = RowCoupling(HeldGradients(runs.cpu(), 500, 1 << 20), device)
        facts = quantize_tpec(w, check_finite("w", w), Rounding(metric, 2, coupling=coupling), 1 << 20).facts
        losses.append((facts.loss / facts.nearest_loss).item())
    assert losses[0] < 1 and losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_file_on_cuda_is_verified_and_repeats(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    write_safetensors(source, demo_tensors(), {})
    plan = make_plan(open_checkpoint(source), Settings())
    outputs = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for output in outputs:
        quantize(plan, output, devices=[CUDA])
        assert verify(source, output).ok
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    with Reader(open_checkpoint(outputs[0])) as reader:
        assert reader.tensor("single_blocks.0.linear1.weight").dtype == torch.float8_e4m3fn


def test_lanes_on_one_gpu_or_several_give_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    write_safetensors(source, demo_tensors(), {})
    plan = make_plan(open_checkpoint(source), Settings())
    several = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    quantize(plan, tmp_path / "one", devices=[CUDA])
    for name, devices in (("two", [CUDA, CUDA]), ("all", several)):
        report = quantize(plan, tmp_path / name, devices=devices)
        assert report.device == ", ".join(map(str, devices)) and not report.notes
        assert (tmp_path / name).read_bytes() == (tmp_path / "one").read_bytes()


def test_fresh_process_with_several_threads(tmp_path: Path) -> None:
    """PyTorch and Triton load much at their first use, and several layers are begun at once."""
    source = tmp_path / "model.safetensors"
    write_safetensors(source, demo_tensors(), {})
    outputs = [tmp_path / f"{attempt}.safetensors" for attempt in range(4)]
    for output, devices in zip(outputs, ("cuda", "cuda:0,cuda:0") * 2, strict=True):
        done = subprocess.run([sys.executable, "-m", "tpec", "quantize", source, "-o", output,
                               "--device", devices, "--quiet"], capture_output=True, text=True, check=False,
                              cwd=REPOSITORY)
        assert done.returncode == 0, done.stderr
    assert len({output.read_bytes() for output in outputs}) == 1


def test_what_went_up_and_came_down_is_what_it_was() -> None:
    """Buffers are used again and memory is let go of while copies are under way."""
    size, halt = 1 << 20, Halt()
    uploads, downloads = Buffers(2, 4 * size), Buffers(2, 4 * size)
    upload, download, stream = Upload(CUDA, uploads), Download(CUDA, downloads), torch.cuda.Stream(CUDA)
    waiting = []
    for step in range(8):
        buffer = upload.buffer(halt)
        weight = buffer.view(torch.float32).fill_(step)
        read = upload.send(Task(TensorPlan(TensorInfo("w", "F32", (size,), 0, 4 * size), "w", "quantize", ""), 1.0),
                           buffer, weight, None)
        with torch.cuda.stream(stream):
            stream.wait_event(read.ready)
            read.weight.record_stream(stream)
            result, ready = read.weight * 2 + 1, torch.cuda.Event()
            ready.record(stream)
        waiting.append((step, download.fetch([result], ready, halt)))
        del read, result
        if len(waiting) == 2:
            number, (tensors, arrived, used) = waiting.pop(0)
            arrived.synchronize()
            assert (tensors[0].view(torch.float32) == 2 * number + 1).all()
            downloads.give(used)


def test_no_number_is_fetched_before_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that others use as well is late with the last thing that a layer asks of it, its scale."""
    source = tmp_path / "model.safetensors"
    write_safetensors(source, demo_tensors(), {})
    plan, stack = make_plan(open_checkpoint(source), Settings(method="nearest")), torch.stack
    quantize(plan, tmp_path / "alone", devices=[CUDA])

    def late(*arguments: Any, **options: Any) -> torch.Tensor:
        torch.cuda._sleep(20_000_000)
        return stack(*arguments, **options)

    monkeypatch.setattr(torch, "stack", late)
    quantize(plan, tmp_path / "late", devices=[CUDA])
    assert (tmp_path / "late").read_bytes() == (tmp_path / "alone").read_bytes()


def test_runs_leave_no_memory_taken(tmp_path: Path) -> None:
    """Each has threads and streams of its own, and cuBLAS keeps scratch memory for every pair of them."""
    source = tmp_path / "model.safetensors"
    write_safetensors(source, demo_tensors(), {})
    plan, taken = make_plan(open_checkpoint(source), Settings()), []
    for number in range(4):
        quantize(plan, tmp_path / f"{number}.safetensors", devices=[CUDA])
        taken.append(torch.cuda.memory_allocated(CUDA))
    assert len(set(taken[1:])) == 1


@pytest.mark.parametrize(("width", "rows"), [(96, 1500), (1536, 8), (1536, 200), (WIDTH_LIMIT + 8, 1500)])
def test_calibration_is_written_on_the_device_as_on_the_cpu(tmp_path: Path, width: int, rows: int) -> None:
    layer = Linear(width, 8, device=CUDA)
    with Collector({"layer": layer}, CUDA) as collector:
        layer(random(rows, width) * torch.logspace(-1, 0, width, device=CUDA) + 0.2)
    calibration = collector.finish({"layer": (8, width)})
    found = [open_calibration(save_calibration(calibration, tmp_path / f"{device}.safetensors", device=device))
             for device in (CUDA, torch.device("cpu"))]
    one, other = (each.groups["layer"].second_moment() for each in found)
    assert (one - other).norm() < 1e-3 * other.norm()


def test_memory_shortage_uses_smaller_chunks_then_the_cpu(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    write_safetensors(source, demo_tensors(), {})
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(CUDA) + (4 << 20)) / total)
    try:
        report = quantize(make_plan(open_checkpoint(source), Settings()), tmp_path / "q.safetensors", devices=[CUDA])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert verify(source, tmp_path / "q.safetensors").ok
    assert any("ran out of memory" in note for note in report.notes)


FIRST_USE = """
import sys, torch
from tpec.files.checkpoint import open_checkpoint
from tpec.run.pipeline import quantize
from tpec.run.progress import Halt
from tpec.run.tasks import Task
from tpec.run.transfers import Buffers, Download, Upload
from tpec.model.plan import make_plan
from tpec.settings import Settings
torch.cuda.set_per_process_memory_fraction(float(sys.argv[3]))
report = quantize(make_plan(open_checkpoint(sys.argv[1]), Settings()), sys.argv[2], devices=["cuda:0"])
print(report.notes)
"""


@pytest.mark.parametrize("fraction", [0.0, 2e-5, 2e-4])
def test_libraries_without_room_for_their_workspace(tmp_path: Path, fraction: float) -> None:
    """In a fresh process cuBLAS and cuSOLVER ask for theirs when there is no memory left."""
    source, output = tmp_path / "model.safetensors", tmp_path / "q.safetensors"
    write_safetensors(source, demo_tensors(), {})
    done = subprocess.run([sys.executable, "-c", FIRST_USE, source, output, str(fraction)], capture_output=True,
                          text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert verify(source, output).ok
    assert fraction or "ran out of memory" in done.stdout


def test_buffers_that_cannot_be_pinned_are_plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = torch.empty

    def refused(*size: object, **more: object) -> torch.Tensor:
        if more.get("pin_memory"):
            raise RuntimeError("CUDA error: OS call failed or operation not supported on this OS")
        return empty(*size, **more)

    source = tmp_path / "model.safetensors"
    write_safetensors(source, demo_tensors(), {})
    plan = make_plan(open_checkpoint(source), Settings())
    quantize(plan, tmp_path / "pinned", devices=[CUDA])
    monkeypatch.setattr(torch, "empty", refused)
    quantize(plan, tmp_path / "plain", devices=[CUDA])
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "pinned").read_bytes()


def collected(sums: torch.device) -> Calibration:
    """Statistics of a moderate and a wide layer on the GPU, also of their gradients."""
    layers = Sequential(Linear(64, WIDTH_LIMIT + 64, False, CUDA),
                        Linear(WIDTH_LIMIT + 64, 32, False, CUDA)).requires_grad_(False)
    for index, layer in enumerate(layers):
        layer.weight.copy_(random(*layer.weight.shape, seed=index) * 0.1)
    watched = {str(index): layer for index, layer in enumerate(layers)}
    with Collector(watched, sums) as inputs, GradientCollector(watched, sums) as gradients:
        for step in range(3):
            gradients.probe(layers(random(1, 300, 64, seed=10 + step).requires_grad_(True)))
    found = inputs.finish({name: tuple(layer.weight.shape) for name, layer in watched.items()})
    return replace(found, outputs=gradients.finish())


def test_sums_on_the_host_are_those_on_the_gpu() -> None:
    there, here = collected(CUDA), collected(torch.device("cpu"))
    assert "vectors" in there.groups["1"].form
    for name, stats in there.groups.items():
        expected, got = stats.second_moment(), here.groups[name].second_moment()
        assert (got - expected).norm() < 1e-3 * expected.norm()
    assert there.outputs.keys() == here.outputs.keys() == {"0", "1"}
    for name, stats in there.outputs.items():
        torch.testing.assert_close(here.outputs[name].second_moment(), stats.second_moment(), rtol=1e-3, atol=1e-5)
