"""Models as they are in the graph: LoRAs, merges and patches are in the quantized file, bit for bit as in ComfyUI."""

import json
import os
import sys
import threading
from pathlib import Path

import models
import prompts as p
import pytest
import torch
from comfy_server import REPOSITORY, ComfyServer
from safetensors import safe_open
from safetensors.torch import load_file
from test_main_job import dequantized

from tpec.check.verify import verify
from tpec.model.origin import GraphOrigin, origin_of

LORA = "shapes_lora.safetensors"
SMALL, OTHER, SMALL_LORA = "small.safetensors", "small_other.safetensors", "small_lora.safetensors"
PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def lora(server: ComfyServer, shared_models: Path, tinyflux: str) -> str:
    """A LoRA of rank 8 for the trained model, as large as one that was trained on it for a while."""
    return save_lora(server, LORA, models.lora(load_file(shared_models / tinyflux), size=0.04))


@pytest.fixture(scope="module")
def small(server: ComfyServer) -> str:
    """A Flux layout that quantizes in a moment, with another one beside it and a LoRA for both."""
    for name, seed in ((SMALL, 0), (OTHER, 1)):
        models.save(models.flux(hidden=128, seed=seed), server.models / "diffusion_models" / name)
    save_lora(server, SMALL_LORA, models.lora(models.flux(hidden=128)))
    return SMALL


def save_lora(server: ComfyServer, name: str, tensors: models.Tensors) -> str:
    folder = server.models / "loras"
    folder.mkdir(exist_ok=True)
    models.save(tensors, folder / name)
    return name


def model_save(server: ComfyServer, nodes: dict[str, dict], model: list, name: str) -> Path:
    """The file that ComfyUI's own ModelSave writes of a model."""
    server.succeed({**nodes, "own": p.node("ModelSave", model=model, filename_prefix=f"diffusion_models/{name}")})
    (path,) = (server.output / "diffusion_models").glob(f"{name}_*.safetensors")
    return path


def baked(server: ComfyServer, nodes: dict[str, dict], model: list, after: list | None = None) -> dict:
    """How the weights that quantizing reads compare with ComfyUI's own."""
    more = {"after": after} if after else {}
    return json.loads(server.succeed({
        **nodes, "source": p.node("TPECModelSource", model=model),
        "bytes": p.node("TestBakedWeights", model=model, checkpoint=["source", 0], **more)}).text("bytes"))


def fidelity() -> Path:
    folder = Path(os.environ.get("TPEC_SHARED_FIDELITY") or REPOSITORY.parent / "shared" / "fidelity")
    if not (folder / "flux_layout.py").is_file():
        pytest.skip(f"no {folder}")
    return folder


@torch.no_grad()
def velocities(state: models.Tensors) -> torch.Tensor:
    """The trained model's predictions with these weights at the stored points."""
    folder = fidelity()
    sys.path.insert(0, str(folder))
    from flux_layout import MiniFlux

    network = MiniFlux()
    # ComfyUI's own names of these norms, which it reads and writes as well.
    network.load_state_dict({name.removeprefix(PREFIX).replace("_norm.weight", "_norm.scale"): tensor.float()
                             for name, tensor in state.items()})
    points = load_file(folder / "points.safetensors")
    return torch.cat([network(*(points[name][begin:begin + 8].float() for name in ("x", "t", "context", "pooled")))
                      for begin in range(0, len(points["x"]), 8)])


def test_every_weight_is_comfyui_s_own_patched_one(server: ComfyServer, small: str):
    nodes = {**p.stock_loader(small), **p.with_lora(SMALL_LORA, 0.7)}
    found = baked(server, nodes, ["lora", 0])
    linears = len(models.lora(models.flux(hidden=128))) // 3
    assert found["equal"] == found["tensors"] == len(models.flux(hidden=128))
    assert found["changed"] == linears > 5
    path = model_save(server, nodes, ["lora", 0], "small_patched")
    report = server.succeed({**nodes, **p.quantizing_model(["lora", 0]), **p.saving("small_lora_fp8")}).text("quantize")
    assert f"made from the model in the graph (Flux, {linears} tensors changed by 1 LoRA of strength 0.7)" in report
    # Tensors that are kept are compared bit for bit, the others by how far FP8 can be off.
    result = verify(path, server.models / "diffusion_models" / "small_lora_fp8.safetensors")
    assert result.ok and result.origin == GraphOrigin("Flux", linears, (0.7,)), result.text()


@pytest.mark.parametrize("loaded_with", ["own patches", "other patches", "no patches"])
def test_loaded_models_give_the_same_weights(server: ComfyServer, tinyflux: str, lora: str, loaded_with: str):
    """Once with patches in the loaded weights, they must be neither baked in twice nor mixed with others'."""
    nodes = {**p.stock_loader(tinyflux), **p.with_lora(lora, 0.9), "other": p.with_lora(lora, -0.5)["lora"]}
    sampled = {"own patches": ["lora", 0], "other patches": ["other", 0], "no patches": ["model", 0]}[loaded_with]
    found = baked(server, {**nodes, **p.sampling(sampled, "loaded", steps=1)}, ["lora", 0], ["sampler", 0])
    assert found["loaded"] or server.keeps_originals, "the model was to be loaded"
    assert found["equal"] == found["tensors"] and found["changed"]


@pytest.fixture(scope="module")
def patched(server: ComfyServer, tinyflux: str, lora: str) -> Path:
    """The trained model with the LoRA, saved by ComfyUI."""
    return model_save(server, {**p.stock_loader(tinyflux), **p.with_lora(lora)}, ["lora", 0], "patched")


def errors(server: ComfyServer, reference: models.Tensors, nodes: dict[str, dict], name: str) -> float:
    """The velocity error of what `nodes` quantize, against that of plain rounding."""
    wanted = velocities(reference)
    found = {}
    for method in ("tpec", "nearest"):
        nodes["quantize"]["inputs"]["method"] = method
        server.succeed({**nodes, **p.saving(f"{name}_{method}")}, 580)
        file = dequantized(server.models / "diffusion_models" / f"{name}_{method}.safetensors")
        found[method] = ((velocities(file) - wanted).norm() / wanted.norm()).item()
    return found["tpec"] / found["nearest"]


def calibrating(model: list) -> dict[str, dict]:
    nodes = p.sampling(model, "unused", first=32, count=4)
    del nodes["sampler"], nodes["keep"]
    nodes["calibrate"] = p.node(
        "TPECCalibrate", model=model, positive=["positive", 0], negative=["negative", 0], latent_image=["latent", 0],
        seed=5, steps=6, cfg=3.0, sampler_name="euler", scheduler="simple", runs=1)
    return nodes


@pytest.mark.slow
@pytest.mark.parametrize("calibrate", [False, True], ids=["data-free", "calibrated"])
def test_lora_costs_no_quality(server, shared_models, tinyflux, lora, patched, figures, calibrate: bool):
    loader, apply = p.stock_loader(tinyflux), p.with_lora(lora)
    extra = {"calibration": ["calibrate", 0]} if calibrate else {}
    kind = "calibrated" if calibrate else "free"
    plain = errors(server, load_file(shared_models / tinyflux), {
        **loader, **(calibrating(["model", 0]) if calibrate else {}),
        **p.quantizing(f"diffusion_models/{tinyflux}", **extra)}, f"plain_{kind}")
    baked_in = errors(server, load_file(patched), {
        **loader, **apply, **(calibrating(["lora", 0]) if calibrate else {}),
        **p.quantizing_model(["lora", 0], **extra)}, f"lora_{kind}")
    figures.append(f"velocity error against nearest, {kind}: without LoRA {plain:.3f}, with {baked_in:.3f}")
    assert baked_in < plain + 0.05
    result = verify(patched, server.models / "diffusion_models" / f"lora_{kind}_tpec.safetensors")
    assert result.ok and result.kept + result.corrected + len(result.errors) == len(load_file(patched)), result.text()


def test_baked_model_samples_as_the_patched_one(server: ComfyServer, tinyflux: str, lora: str):
    graph = {**p.stock_loader(tinyflux), **p.with_lora(lora, 15.0)}
    wanted = p.saved_latent(server, server.succeed({**graph, **p.sampling(["lora", 0], "patched", first=1)}))
    plain = p.saved_latent(server, server.succeed({**graph, **p.sampling(["model", 0], "unpatched", first=1)}))
    got = p.saved_latent(server, server.succeed({
        **graph, **p.quantizing_model(["lora", 0]), **p.sampling(["fp8", 0], "baked", first=1),
        "fp8": p.node("TPECLoadScaledFP8", quantized=["quantize", 0])}))
    assert p.psnr(got, wanted) > 30 > p.psnr(plain, wanted)


def test_merge_of_two_models(server: ComfyServer, small: str):
    nodes = {**p.stock_loader(small), "second": p.node("UNETLoader", unet_name=OTHER, weight_dtype="default"),
             "merge": p.node("ModelMergeSimple", model1=["model", 0], model2=["second", 0], ratio=0.25),
             **p.with_lora(SMALL_LORA, 0.5, "merge")}
    found = baked(server, nodes, ["lora", 0])
    assert found["equal"] == found["tensors"]
    path = model_save(server, nodes, ["lora", 0], "merged")
    outcome = server.succeed({**nodes, **p.quantizing_model(["lora", 0]), **p.saving("merged_fp8")})
    assert "1 LoRA of strength 0.5 and 1 merge of strength 0.75" in outcome.text("quantize")
    assert verify(path, server.models / "diffusion_models" / "merged_fp8.safetensors").ok


def test_other_patches_are_another_result(server: ComfyServer, small: str):
    """And the same prompt once more takes the result that is there."""
    def weights(strength: float) -> tuple[models.Tensors, set[str]]:
        outcome = server.succeed({
            **p.stock_loader(small), **p.with_lora(SMALL_LORA, strength),
            **p.quantizing_model(["lora", 0], method="nearest"),
            "save": p.node("TPECSaveScaledFP8", quantized=["quantize", 0], filename="again", folder="models",
                           if_exists="overwrite")})
        return dequantized(server.models / "diffusion_models" / "again.safetensors"), outcome.cached

    name = f"{PREFIX}double_blocks.0.img_mlp.0.weight"
    first, _ = weights(0.3)
    second, _ = weights(-0.3)
    again, cached = weights(-0.3)
    assert not torch.equal(first[name], second[name])
    assert torch.equal(second[name], again[name]) and "quantize" in cached


def test_recipe_names_class_and_strengths_but_no_paths(server: ComfyServer, small: str):
    server.succeed({**p.stock_loader(small), **p.with_lora(SMALL_LORA, 0.7), **p.quantizing_model(["lora", 0]),
                    **p.saving("with_recipe")})
    with safe_open(server.models / "diffusion_models" / "with_recipe.safetensors", "pt") as file:
        metadata = file.metadata()
    assert origin_of(metadata).loras == (0.7,) and origin_of(metadata).model == "Flux"
    assert json.loads(metadata["tpec"])["source"] == "small_lora"
    assert str(server.base) not in json.dumps(metadata)


def test_deleted_result_is_made_again_from_the_model(server: ComfyServer, small: str):
    nodes = {**p.stock_loader(small), **p.with_lora(SMALL_LORA, 0.45), **p.quantizing_model(["lora", 0])}
    server.succeed({**nodes, **p.saving("kept_once")})
    for path in server.temp.rglob("small_lora-*.safetensors"):
        path.unlink()
    server.succeed({**nodes, **p.saving("kept_twice")})
    folder = server.models / "diffusion_models"
    assert (folder / "kept_once.safetensors").read_bytes() == (folder / "kept_twice.safetensors").read_bytes()


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_model_loaded_in_fp8_is_refused(server: ComfyServer, small: str, weight_dtype: str):
    outcome = server.run({"model": p.node("UNETLoader", unet_name=small, weight_dtype=weight_dtype),
                          **p.quantizing_model(["model", 0]), **p.saving("cast_in_use", if_exists="overwrite")})
    if server.keeps_originals:
        server.succeed({**p.stock_loader(small), **p.quantizing_model(["model", 0]),
                        **p.saving("as_it_is", if_exists="overwrite")})
        one, other = (load_file(server.models / "diffusion_models" / f"{name}.safetensors")
                      for name in ("cast_in_use", "as_it_is"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key].float(), other[key].float()) for key in one)
        return
    assert outcome.failed_node == "TPECModelSource"
    assert "quantized already" in outcome.error and "float8" in outcome.error and "weight_dtype" in outcome.error


def test_quantized_file_is_refused_also_with_a_lora_on_top(server: ComfyServer, small: str):
    server.succeed({**p.quantizing(f"diffusion_models/{small}"), **p.saving("fp8_base")})
    outcome = server.run({**p.stock_loader("fp8_base.safetensors"), **p.with_lora(SMALL_LORA),
                          **p.quantizing_model(["lora", 0]), **p.saving("never")})
    assert outcome.failed_node == "TPECModelSource" and "quantized already" in outcome.error
    assert len(outcome.error.splitlines()) == 1


def test_quantized_model_merged_in_is_refused(server: ComfyServer, small: str):
    outcome = server.run({
        **p.stock_loader(small), "second": p.node("UNETLoader", unet_name=OTHER, weight_dtype="fp8_e4m3fn"),
        "merge": p.node("ModelMergeSimple", model1=["model", 0], model2=["second", 0], ratio=0.25),
        **p.quantizing_model(["merge", 0]), **p.saving("merged_in_use", if_exists="overwrite")})
    if server.keeps_originals:
        assert outcome.error is None
        return
    assert outcome.failed_node == "TPECModelSource" and "merged in is quantized already" in outcome.error


def test_what_cannot_be_baked_is_named(server: ComfyServer, small: str):
    nodes = {**p.stock_loader(small), "changed": p.node("TestUnbakedChanges", model=["model", 0]),
             **p.quantizing_model(["changed", 0])}
    outcome = server.succeed({**nodes, **p.saving("unbaked"), "show": p.node("PreviewAny", source=["load", 1])})
    for text in (outcome.text("show"), outcome.text("quantize")):
        assert "not in the weights" in text
        assert all(name in text for name in ("model_sampling", "1 weight function", "patch attn1_patch")), text


class Memory:
    """The largest anonymous memory of a process while the context lasts, in bytes."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak = 0

    def now(self) -> int:
        return next(1024 * int(line.split()[1]) for line in self._status.read_text().splitlines()
                    if line.startswith("RssAnon"))

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's memory figures")
def test_memory_beside_the_loaded_model_is_flat(comfy_install, tmp_path: Path, figures):
    """Eight times the model takes no more: nothing that is as large as the model is ever held."""
    beside = {}
    for single in (8, 72):
        # Each in a process of its own, since the heap keeps what was freed.
        with ComfyServer(*comfy_install, tmp_path / str(single)) as fresh:
            size, beside[single] = memory_beside(fresh, single)
        figures.append(f"baking a LoRA into a model of {size / 1e6:.0f} MB: {beside[single] / 1e6:.0f} MB beside it")
    assert beside[72] < beside[8] + 32e6, beside


def memory_beside(server: ComfyServer, single: int) -> tuple[int, int]:
    """Bytes of a model with so many single blocks, and the peak above the model loaded while it is quantized."""
    name = "model.safetensors"
    tensors = models.flux(hidden=512, single=single)
    size = models.save(tensors, server.models / "diffusion_models" / name).stat().st_size
    save_lora(server, name, models.lora(tensors, rank=4))
    nodes = {**p.stock_loader(name), **p.with_lora(name)}
    server.succeed({**nodes, "load": p.node("TPECModelSource", model=["lora", 0]),
                    "show": p.node("PreviewAny", source=["load", 1])})
    memory = Memory(server.pid)
    before = memory.now()
    with memory:
        server.succeed({**nodes, **p.quantizing_model(["lora", 0], method="nearest"),
                        "report": p.node("PreviewAny", source=["quantize", 1])}, 580)
    return size, memory.peak - before
