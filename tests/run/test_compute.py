"""One layer on a device: the way down when memory runs out, and what is refused rather than written."""

import json
from pathlib import Path

import pytest
import torch
from samples import generator, load, names_in, save_flux, sha256

import tpec.rounding.method
from tpec.check.verify import verify
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.rounding.grid import decode
from tpec.run.compute import Compute
from tpec.run.pipeline import quantize
from tpec.run.progress import Meter
from tpec.run.report import LayerReport, Report
from tpec.run.tasks import make_tasks
from tpec.run.transfers import Read
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration, hash_layers
from tpec.statistics.inputs import Gram, HeldInputs

LINEAR = "single_blocks.0.linear1"
ONE = Settings(exclude="double|modulation|linear2")
NO_MEMORY = [torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError(),
             RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
             RuntimeError("Triton Error [CUDA]: out of memory")]


def run(source: Path, output: Path, settings: Settings = ONE, **more: object) -> Report:
    return quantize(make_plan(open_checkpoint(source), settings), output, **more)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, error: Exception, enough: int) -> list[int]:
    """Rounding raises `error` while it is asked for more than `enough` weights at a time; returns what it is asked."""
    asked: list[int] = []
    real = tpec.rounding.method.quantize_tpec

    def limited(weight: torch.Tensor, largest: torch.Tensor, rounding: object, chunk: int, tick: object) -> object:
        asked.append(chunk)
        if chunk > enough:
            raise error
        return real(weight, largest, rounding, chunk, tick)

    monkeypatch.setattr(tpec.rounding.method, "quantize_tpec", limited)
    return asked


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_shortage_of_any_kind_is_met_with_smaller_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         error: Exception) -> None:
    source = save_flux(tmp_path)
    run(source, tmp_path / "plain")
    asked = short_of_memory(monkeypatch, error, 1 << 20)
    run(source, tmp_path / "q")
    assert len(asked) == 3 and asked == sorted(asked, reverse=True)
    assert sha256(tmp_path / "q") == sha256(tmp_path / "plain")


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_shortage_without_end_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              error: Exception) -> None:
    short_of_memory(monkeypatch, error, 0)
    with pytest.raises(TpecError, match=f"Memory ran out at layer '{LINEAR}', even in small pieces"):
        run(save_flux(tmp_path), tmp_path / "q")
    assert names_in(tmp_path) == {"model.safetensors"}


def test_other_errors_are_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = short_of_memory(monkeypatch, RuntimeError("CUDA error: an illegal memory access was encountered"), 0)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(save_flux(tmp_path), tmp_path / "q")
    assert len(asked) == 1


@pytest.mark.parametrize("method", ["tpec", "nearest"])
@pytest.mark.parametrize("exponent", range(-45, -34))
def test_what_is_written_can_be_verified_and_else_is_refused(tmp_path: Path, method: str, exponent: int) -> None:
    """Weights near float32's end leave no room for a scale below them."""
    weight = (torch.rand(48, 64, generator=generator()).double() * 2 - 1) * 10.0**exponent
    source = save_flux(tmp_path, extra={f"{LINEAR}.weight": weight.float()})
    settings = Settings(method=method, exclude=ONE.exclude)
    try:
        run(source, tmp_path / "q.safetensors", settings)
    except TpecError as error:
        assert f"Layer '{LINEAR}' cannot be held in FP8" in str(error) and "--exclude" in str(error)
        assert names_in(tmp_path) == {"model.safetensors"}
        assert exponent < -39
    else:
        assert verify(source, tmp_path / "q.safetensors").ok
        assert exponent > -45


def test_the_remedy_for_a_refused_layer_works(tmp_path: Path) -> None:
    weight = torch.full((48, 64), 3e-42) * torch.rand(48, 64, generator=generator())
    source = save_flux(tmp_path, extra={f"{LINEAR}.weight": weight})
    with pytest.raises(TpecError) as caught:
        run(source, tmp_path / "q.safetensors", Settings())
    pattern = str(caught.value).split("--exclude '")[1].split("'")[0]
    report = run(source, tmp_path / "q.safetensors", Settings(exclude=pattern))
    assert len(report.layers) == 12 and verify(source, tmp_path / "q.safetensors").ok


def calibration(source: Path, mean: float) -> Calibration:
    """Inputs around `mean`, so many that biases are corrected."""
    weights = {name.removesuffix(".weight"): tuple(tensor.shape) for name, tensor in load(source).items()
               if name.endswith(".weight") and tensor.ndim == 2}
    groups = {}
    for name, (_, columns) in weights.items():
        x = torch.randn(16 * columns, columns, generator=generator()) + mean
        groups[name] = HeldInputs(x.mean(0), x.abs().max().item(), len(x), Gram(x.mT @ x / len(x)))
    return Calibration(groups, {name: name for name in groups}, hash_layers(weights), "test", 1, {}, weights)


def with_bias(folder: Path, bias: torch.Tensor) -> Path:
    return save_flux(folder, extra={f"{LINEAR}.weight": torch.randn(48, 64, generator=generator()).half(),
                                    f"{LINEAR}.bias": bias})


def test_bias_that_its_correction_drives_out_of_range_is_refused(tmp_path: Path) -> None:
    source = with_bias(tmp_path, torch.full((48,), 65504.0).half() * (1 - 2 * (torch.arange(48) % 2)).half())
    with pytest.raises(TpecError, match=f"The bias of '{LINEAR}', corrected by the calibration, leaves the range"):
        run(source, tmp_path / "q.safetensors", calibration=calibration(source, 1e5))
    assert names_in(tmp_path) == {"model.safetensors"}
    run(source, tmp_path / "q.safetensors", calibration=calibration(source, 1.0))
    assert verify(source, tmp_path / "q.safetensors").ok


def test_bias_that_is_not_finite_is_refused_before_it_is_corrected(tmp_path: Path) -> None:
    source = with_bias(tmp_path, torch.tensor([float("nan")] + [0.0] * 47).half())
    with pytest.raises(TpecError, match=f"'{LINEAR}.bias' holds NaN"):
        run(source, tmp_path / "q.safetensors", calibration=calibration(source, 1.0))
    with pytest.raises(TpecError, match=f"The bias of '{LINEAR}'.*not finite before"):
        run(source, tmp_path / "q.safetensors", Settings(exclude=ONE.exclude, keep_nonfinite=True),
            calibration=calibration(source, 1.0))
    assert names_in(tmp_path) == {"model.safetensors"}


def test_a_layers_report_is_made_once_with_its_shape(tmp_path: Path) -> None:
    """What the journal keeps is what the report shows."""
    source = save_flux(tmp_path)
    plan = make_plan(open_checkpoint(source), ONE)
    task = next(task for task in make_tasks(plan, frozenset()) if task.quantize)
    compute = Compute(plan, None, torch.device("cpu"), Meter(1.0, 1, 0.0, 0, None))
    weight = load(source)[task.tensor.name]
    result = compute.run(Read(task, weight, None, None))
    assert result.ready is None and result.bias is None and result.numbers[0] > 0
    assert set(result.scale_names) == {f"{LINEAR}.weight_scale", f"{LINEAR}.scale_weight"}
    report = result.report(result.numbers, None)
    assert (report.name, report.shape, report.metric) == (LINEAR, tuple(weight.shape), "weight")
    assert report.scale == result.numbers[0].item()
    error = decode(result.codes, result.numbers[0]) - weight.float()
    # The few weights that are moved for the published objective are not counted.
    assert report.relative_error == pytest.approx((error.norm() / weight.float().norm()).item(), rel=0.01)
    assert report.loss < report.nearest_loss and report.principal_after < report.principal_before
    assert LayerReport.from_json(json.loads(json.dumps(report.to_json()))) == report
