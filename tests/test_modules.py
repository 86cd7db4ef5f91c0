"""Which weights of a file keep their scales through what a loader does to names and tensors."""

import importlib
import importlib.util
import sys
from pathlib import Path

import torch
from torch.nn import Linear as PlainLinear

ROOT = Path(__file__).resolve().parents[1]


def load_modules():
    """nodes/host/modules.py, which needs the pack's root as its parent package but no ComfyUI."""
    if "tpec_pack" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tpec_pack", ROOT / "__init__.py",
                                                      submodule_search_locations=[str(ROOT)])
        sys.modules["tpec_pack"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("tpec_pack.nodes.host.modules")


modules = load_modules()
SHAPES = {"a.weight": (4, 8), "a.bias": (4,), "norm.scale": (8,), "qkv.weight": (12, 8)}


def test_a_rename_keeps_weights_with_their_scales() -> None:
    names = modules.file_names(SHAPES, lambda state: {name.replace("a.", "b."): t for name, t in state.items()})
    assert names == {"b": "a", "qkv": "qkv"}


def test_a_split_or_changed_tensor_is_no_longer_the_files() -> None:
    def load(state):
        out = {name: tensor for name, tensor in state.items() if name != "qkv.weight"}
        q, k, v = state["qkv.weight"].chunk(3)
        return out | {"q.weight": q, "k.weight": k, "v.weight": v, "a.weight": state["a.weight"] * 1}

    assert modules.file_names(SHAPES, load) == {}


def test_a_rename_that_leaves_the_scales_behind_does_not_count() -> None:
    def load(state):
        return {("b.weight" if name == "a.weight" else name): tensor for name, tensor in state.items()}

    assert modules.file_names(SHAPES, load) == {"qkv": "qkv"}


def test_dropped_weights_are_not_there() -> None:
    assert modules.file_names(SHAPES, lambda state: {"a.weight": state["a.weight"],
                                                     **{n: t for n, t in state.items() if "scale" in n}}) == {"a": "a"}


def test_what_the_file_holds_in_another_rank_is_no_linear() -> None:
    shapes = {"a.weight": (4, 8), "conv.weight": (4, 8, 3), "table.weight": (2, 4, 8)}
    found = {"a": "linears", "conv": "linears", "table": "experts", "gone": "linears"}
    names = {"a": "a", "conv": "conv", "table": "table"}
    structure = modules.in_file("Kind", found, names, shapes)
    assert (structure.name, structure.linears, structure.experts) == ("Kind", {"a"}, {"table"})


def test_only_modules_of_the_operations_for_quantized_files_count() -> None:
    def mixed_precision_ops() -> type:
        class Operations:
            class Linear(torch.nn.Module):
                pass

            class LayerNorm(torch.nn.Module):
                pass

        return Operations

    operations = mixed_precision_ops()
    operations.Linear.__qualname__ = operations.Linear.__qualname__.split("<locals>.", 1)[1]
    operations.LayerNorm.__qualname__ = operations.LayerNorm.__qualname__.split("<locals>.", 1)[1]
    model = torch.nn.ModuleDict({"a": operations.Linear(), "b": PlainLinear(2, 2), "c": operations.LayerNorm(),
                                 "d": type("Derived", (operations.Linear,), {})()})
    assert modules.scaled_modules(model) == {"a": "linears", "d": "linears"}


def test_hollow_tensors_have_shapes_and_no_memory() -> None:
    info = sys.modules["tpec_pack.tpec.files.header"].TensorInfo("big", "BF16", (1 << 20, 1 << 20), 0, 0)
    tensor = modules.hollow({"big": info})["big"]
    assert tensor.shape == (1 << 20, 1 << 20)
    assert tensor.untyped_storage().nbytes() == 4
