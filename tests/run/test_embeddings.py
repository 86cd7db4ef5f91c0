"""Token embeddings in FP8: rounded to nearest with the absmax scale, whatever the method, and known everywhere."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import load, t5xxl_shapes, weights

from tpec.check.verify import verify
from tpec.command.cli import main
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.rounding.grid import FP8, FP8_MAX, decode
from tpec.run.pipeline import quantize, settle
from tpec.settings import Settings

CPU = torch.device("cpu")
TABLE = "shared.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tensors = weights({name: shape for name, shape in t5xxl_shapes().items() if not name.startswith("decoder.")})
    tensors[TABLE] *= torch.logspace(-2, 0, len(tensors[TABLE]), dtype=torch.bfloat16)[:, None]   # rare words are short
    save_file(tensors, tmp_path / "t5.safetensors")
    return tmp_path / "t5.safetensors"


@pytest.mark.parametrize("method", ["tpec", "nearest"])
def test_a_table_is_rounded_to_nearest_and_verified(source: Path, tmp_path: Path, method: str) -> None:
    settings = Settings(method=method, format="comfy_quant", embeddings=True)
    report = quantize(make_plan(open_checkpoint(source), settings), tmp_path / "q.safetensors")
    table, result = load(source)[TABLE], load(tmp_path / "q.safetensors")
    scale = result["shared.weight_scale"]
    assert scale == table.float().abs().max() / FP8_MAX
    assert torch.equal(result[TABLE].float(), (table.float() / scale).to(FP8).float())
    assert "shared.comfy_quant" in result and result["encoder.embed_tokens.weight"].dtype == torch.bfloat16
    layer = next(layer for layer in report.layers if layer.name == "shared")
    lost = (decode(result[TABLE], scale) - table.float()).norm() / table.float().norm()
    assert layer.metric == "nearest" and layer.relative_error == pytest.approx(lost.item(), rel=1e-3)
    outcome = verify(source, tmp_path / "q.safetensors")
    assert outcome.ok and outcome.errors["shared"] == pytest.approx(layer.relative_error, rel=1e-3)


def test_a_table_that_lost_its_scale_is_found(source: Path, tmp_path: Path) -> None:
    quantize(make_plan(open_checkpoint(source), Settings(format="comfy_quant", embeddings=True)),
             tmp_path / "q.safetensors")
    tensors = load(tmp_path / "q.safetensors")
    del tensors["shared.weight_scale"]
    save_file(tensors, tmp_path / "broken.safetensors")
    assert any("shared" in fault for fault in verify(source, tmp_path / "broken.safetensors").faults)


def test_tables_stay_unless_they_are_asked_for(source: Path, tmp_path: Path) -> None:
    assert main(["quantize", str(source), "-o", str(tmp_path / "a.safetensors"), "--format", "comfy_quant"]) == 0
    assert main(["quantize", str(source), "-o", str(tmp_path / "b.safetensors"), "--format", "comfy_quant",
                 "--embeddings"]) == 0
    assert load(tmp_path / "a.safetensors")[TABLE].dtype == torch.bfloat16
    assert load(tmp_path / "b.safetensors")[TABLE].dtype == FP8


@pytest.mark.parametrize("form", ["universal", "scaled_fp8"])
def test_forms_that_older_versions_read_have_no_tables(form: str) -> None:
    with pytest.raises(TpecError, match="need the format comfy_quant"):
        Settings(format=form, embeddings=True)


def test_keep_quality_chooses_among_linears_only(source: Path) -> None:
    plan = make_plan(open_checkpoint(source), Settings(format="comfy_quant", embeddings=True, keep_quality=20))
    settled = settle(plan, None, CPU)
    assert next(layer for layer in settled.tensors if layer.name == TABLE).action == "quantize"
    assert len(settled.of("quantize")) < len(plan.of("quantize"))
