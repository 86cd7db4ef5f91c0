import json
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open
from samples import save_flux, tiny_flux

from tpec.check.verify import verify
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.files.source import ComputedModel, describe_tensors
from tpec.model.origin import GraphOrigin, origin_of
from tpec.model.plan import make_plan
from tpec.run.choices.losses import measure
from tpec.run.memory import PIECE
from tpec.run.pipeline import quantize
from tpec.settings import Settings

ORIGIN = GraphOrigin("Flux", 12, (0.8, 1.0), (0.5,))


def in_memory(tensors: dict[str, torch.Tensor], name: str = "model.safetensors", **facts: object) -> ComputedModel:
    """A model whose tensors are computed by looking them up; `opened` counts what is open."""
    @contextmanager
    def look_up():
        yield lambda wanted: tensors[wanted]

    infos = describe_tensors(name, {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()})
    return ComputedModel(name, infos, **{"key": "weights", "open": look_up, **facts})


@pytest.mark.parametrize("method", ["tpec", "nearest"])
def test_result_is_that_of_the_same_model_in_a_file(tmp_path, method):
    settings = Settings(method=method)
    path = save_flux(tmp_path)
    file, tensors = open_checkpoint(path), tiny_flux()
    from_file = quantize(make_plan(file, settings), tmp_path / "a.safetensors")
    memory = in_memory({name: tensors[name] for name in file.tensors}, metadata=file.metadata)
    from_memory = quantize(make_plan(memory, settings), tmp_path / "b.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as a, safe_open(tmp_path / "b.safetensors", "pt") as b:
        assert set(a.keys()) == set(b.keys()) and a.metadata() == b.metadata()
        for name in a.keys():
            assert torch.equal(a.get_tensor(name).view(-1).view(torch.uint8),
                               b.get_tensor(name).view(-1).view(torch.uint8)), name
    assert from_memory.relative_error == from_file.relative_error
    assert verify(path, tmp_path / "b.safetensors").ok


def test_layers_are_measured_as_those_of_a_file(tmp_path):
    file, tensors = open_checkpoint(save_flux(tmp_path)), tiny_flux()
    memory = in_memory({name: tensors[name] for name in file.tensors})
    assert len({repr(measure(make_plan(source, Settings()), None, torch.device("cpu")))
                for source in (file, memory)}) == 1


def test_each_tensor_is_computed_once_though_it_is_read_in_pieces(tmp_path):
    counts: Counter[str] = Counter()
    large = torch.arange(PIECE // 2, dtype=torch.int32)  # two pieces and more
    tensors = tiny_flux() | {"note.table": large, "note.scalar": torch.tensor(3.5), "note.empty": torch.empty(0)}

    @contextmanager
    def counted():
        yield lambda name: (counts.update([name]), tensors[name])[1]

    output = tmp_path / "out.safetensors"
    quantize(make_plan(in_memory(tensors, open=counted), Settings(method="nearest")), output)
    assert set(counts) == {name for name, tensor in tensors.items() if tensor.numel()}
    assert set(counts.values()) == {1}
    with safe_open(output, "pt") as file:
        assert torch.equal(file.get_tensor("note.table"), large) and file.get_tensor("note.scalar") == 3.5


def test_inference_tensors_and_other_strides_are_served(tmp_path):
    with torch.inference_mode():
        tensors = {name: tensor.clone() for name, tensor in tiny_flux().items()}
    tensors = {name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    quantize(make_plan(in_memory(tensors), Settings(method="nearest")), tmp_path / "out.safetensors")
    assert verify(save_flux(tmp_path), tmp_path / "out.safetensors").ok


def test_one_tensor_at_a_time_is_held_and_everything_is_closed():
    model = tiny_flux()
    events: list[str] = []

    @contextmanager
    def watched():
        events.append("open")
        yield lambda name: model[name]
        events.append("closed")

    source = in_memory(model, open=watched)
    reader = source.reader()
    first, second = list(source.tensors.values())[:2]
    for info in (first, second):
        buffer = bytearray(info.nbytes)
        reader.read_into(info, memoryview(buffer))
        assert bytes(buffer) == bytes(model[info.name].reshape(-1).view(torch.uint8).numpy())
        assert reader._held[0] == info.name
    reader.drop_cache(first)
    assert reader._held is not None, "only the tensor that is named is dropped"
    reader.drop_cache(second)
    assert reader._held is None
    reader.close()
    assert events == ["open", "closed"]


def test_other_weights_are_another_job(tmp_path):
    """A partial file of one model must not be finished with the weights of another."""
    identities = {json.dumps(in_memory(tiny_flux(), key=key).identity()) for key in ("a", "b")}
    assert len(identities) == 2


def test_model_that_changes_while_it_is_read_is_refused(tmp_path):
    tensors = tiny_flux()
    source = in_memory(tensors)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors[name] = tensors[name].float()
    with pytest.raises(TpecError, match=f"'{name}'.*changed meanwhile"):
        quantize(make_plan(source, Settings()), tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def test_dtype_without_a_code_is_refused_by_name():
    with pytest.raises(TpecError, match="'odd' of the model has dtype torch.complex128"):
        describe_tensors("the model", {"odd": (torch.complex128, (2,))})


def test_recipe_and_reports_say_where_the_weights_came_from(tmp_path):
    note = f"Made from {ORIGIN.text()}."
    source = in_memory(tiny_flux(), origin=ORIGIN.recipe(), notes=(note,))
    report = quantize(make_plan(source, Settings()), tmp_path / "out.safetensors")
    assert note in report.text() and note in report.to_json()["notes"]
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert origin_of(file.metadata()) == ORIGIN
        assert json.loads(file.metadata()["tpec"])["source"] == "model.safetensors"
    text = verify(save_flux(tmp_path), tmp_path / "out.safetensors").text()
    assert "Flux, 12 tensors changed by 2 LoRAs of strength 0.8, 1 and 1 merge of strength 0.5" in text


def test_results_of_files_have_no_origin(tmp_path):
    quantize(make_plan(open_checkpoint(save_flux(tmp_path)), Settings()), tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert origin_of(file.metadata()) is None and "origin" not in file.metadata()["tpec"]


@pytest.mark.parametrize("recipe", ["{", "[]", "{}", '{"origin": 3}', '{"origin": {"model": "x", "loras": 3}}'])
def test_recipes_of_other_programs_are_no_origin(recipe):
    assert origin_of({"tpec": recipe}) is None
    assert origin_of({}) is None
