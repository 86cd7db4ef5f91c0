"""Bad inputs give one sentence and leave nothing behind; an interrupt stops at once; a deleted file comes back."""

import json
import shutil
import time
from pathlib import Path

import models
import prompts as p
import pytest
import torch
from comfy_server import ComfyServer, PromptRefused

TINY = "tiny.safetensors"


@pytest.fixture(scope="module")
def tiny(server: ComfyServer) -> str:
    """A Flux layout that quantizes in a moment."""
    models.save(models.flux(hidden=128), server.models / "diffusion_models" / TINY)
    return TINY


def leftovers(server: ComfyServer) -> list[Path]:
    """Files that are no finished result."""
    return [path for folder in (server.temp, server.models, server.output) for path in folder.rglob("*")
            if path.is_file() and path.suffix not in (".safetensors", ".sft", ".latent", ".png", ".json")]


def broken(server: ComfyServer, kind: str) -> str:
    path = server.models / "diffusion_models" / f"broken_{kind}.safetensors"
    if kind == "truncated":
        models.truncate(models.save(models.flux(hidden=128), path))
    elif kind == "nan":
        tensors = models.flux(hidden=128)
        tensors["single_blocks.0.linear1.weight"][3, 5] = float("nan")
        models.save(tensors, path)
    elif kind == "unknown":
        models.save(models.unknown(), path)
    elif kind == "lora":
        models.save({f"double_blocks.0.img_attn.qkv.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}, path)
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    return path.name


@pytest.mark.parametrize(("kind", "words"), [
    ("nan", ("single_blocks.0.linear1.weight", "NaN")),
    ("unknown", ("layout",)),
])
def test_broken_input_gives_one_sentence(server: ComfyServer, kind: str, words: tuple[str, ...]):
    before = {path for path in server.base.rglob("*.safetensors")}
    name = broken(server, kind)
    outcome = server.run({**p.quantizing(f"diffusion_models/{name}"), **p.saving(f"from_{kind}")})
    assert outcome.status == "error"
    assert all(word in outcome.error for word in words), outcome.error
    assert len(outcome.error.splitlines()) == 1 and outcome.error.endswith(".")
    assert leftovers(server) == []
    assert {path for path in server.base.rglob("*.safetensors")} - before <= {
        server.models / "diffusion_models" / name}


@pytest.mark.parametrize(("kind", "words"), [
    ("truncated", "broken_truncated.safetensors is cut short"),
    ("text", "broken_text.safetensors"),
    ("lora", "it is a LoRA"),
])
def test_wrong_file_is_refused_at_the_loader_before_anything_runs(server: ComfyServer, kind: str, words: str):
    name = broken(server, kind)
    with pytest.raises(PromptRefused, match=words) as refused:
        server.queue({**p.quantizing(f"diffusion_models/{name}"), **p.saving(f"from_{kind}")})
    assert refused.value.nodes == {"TPECLoadCheckpoint"}


def test_blank_choice_is_refused_in_words(server: ComfyServer):
    with pytest.raises(PromptRefused, match="Choose a model file first"):
        server.queue({**p.quantizing(""), **p.saving("never")})


def test_quantized_file_is_not_quantized_again(server: ComfyServer, tiny: str):
    server.succeed({**p.quantizing(f"diffusion_models/{tiny}"), **p.saving("once", if_exists="overwrite")})
    with pytest.raises(PromptRefused, match="quantized already"):
        server.queue({**p.quantizing("diffusion_models/once.safetensors"), **p.saving("twice")})


@pytest.mark.parametrize("device", ["cuda:0", "all GPUs", "cpu,", "cpu,cuda:1", "quantum", ""])
def test_devices_that_are_not_there_are_refused_before_anything_runs(server: ComfyServer, tiny: str, device: str):
    if device in ("cuda:0", "all GPUs") and not server.cpu:
        pytest.skip("a CUDA device is there")
    with pytest.raises(PromptRefused, match=r"There is no .* here: choose auto, cpu, (cuda:\d, )*or several"):
        server.queue({**p.quantizing(f"diffusion_models/{tiny}", device=device), **p.saving("never")})


@pytest.mark.parametrize("filename", ["../escaped", "a/../../escaped", "/abs/escaped", "C:\\escaped", "..\\escaped",
                                      "con", "a//b", " ", "what?", "NUL .txt", "com\u00b9", "a:stream", "a\u202eb",
                                      "\ud800", "\u6a21" * 100, "a/" * 500 + "b", "\\\\host\\share\\escaped"])
def test_names_that_lead_elsewhere_are_refused_before_anything_runs(server: ComfyServer, tiny: str, filename: str):
    with pytest.raises(PromptRefused, match="file name"):
        server.queue({**p.quantizing(f"diffusion_models/{tiny}"), **p.saving(filename)})
    assert list(server.base.rglob("*escaped*")) == []


@pytest.mark.parametrize("name", ["../escaped", "con", " "])
def test_names_of_calibrations_are_refused_before_the_sampling(server: ComfyServer, tiny: str, name: str):
    with pytest.raises(PromptRefused, match="file name"):
        server.queue({"load": p.node("TPECLoadCalibration", name="any"),
                      "store": p.node("TPECSaveCalibration", calibration=["load", 0], name=name, if_exists="number")})


@pytest.mark.parametrize("value", [3, {"a": 1}, True, 1e300, "../../escaped", "diffusion_models/../escaped",
                                   "diffusion_models/", "\0", "\ud800"])
def test_forged_choices_are_refused_in_words_before_anything_runs(server: ComfyServer, tiny: str, value: object):
    """Prompts hold what their senders like; the combos' own check is ours for these."""
    good = f"diffusion_models/{tiny}"
    for prompt in (p.quantizing(value), p.quantizing(good, device=value), p.quantizing(good, like=value)):
        with pytest.raises(PromptRefused) as refused:
            server.queue({**prompt, **p.saving("never")})
        assert "Traceback" not in str(refused.value) and "Error" not in str(refused.value), refused.value


@pytest.mark.parametrize(("pattern", "words"), [("(a)\\1", "backreference"), ("(" * 40 + ")" * 40, "groups inside"),
                                                ("a" * 600, "600 characters"), ("(", "not a regular expression")])
@pytest.mark.parametrize("name", ["include", "exclude"])
def test_patterns_that_are_none_are_refused_before_anything_runs(server: ComfyServer, tiny: str, name: str,
                                                                 pattern: str, words: str):
    with pytest.raises(PromptRefused, match=words):
        server.queue({**p.quantizing(f"diffusion_models/{tiny}", **{name: pattern}), **p.saving("never")})


def test_pattern_that_hangs_python_does_not_hang_the_server(server: ComfyServer, tiny: str):
    outcome = server.run({**p.quantizing(f"diffusion_models/{tiny}", exclude=r"(\w+\.?)+!"),
                          **p.saving("not_hung", if_exists="overwrite")})
    assert outcome.status == "success", outcome.error


def test_dialogs_show_the_kind_of_error_without_a_path(server: ComfyServer):
    outcome = server.run({**p.quantizing(f"diffusion_models/{broken(server, 'unknown')}"), **p.saving("never")})
    (facts,) = [facts for name, facts in outcome.messages if name == "execution_error"]
    assert facts["exception_type"] == "TpecError"


def test_linked_subfolder_is_written_to_and_a_linked_file_is_not(server: ComfyServer, tiny: str, tmp_path: Path):
    folder = server.models / "diffusion_models"
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / "outside.safetensors").symlink_to(tmp_path.parent / "nothing.safetensors")
    run = p.quantizing(f"diffusion_models/{tiny}")
    server.succeed({**run, **p.saving("elsewhere/sub/linked")})
    assert (tmp_path / "sub" / "linked.safetensors").stat().st_size > 1000
    listed = server.choices("UNETLoader", "unet_name")
    assert str(Path("elsewhere", "sub", "linked.safetensors")) in listed
    outcome = server.run({**run, **p.saving("outside", if_exists="overwrite")})
    assert "leads out of" in outcome.error and not list(tmp_path.parent.glob("nothing*"))


def test_every_folder_of_the_kind_is_offered_and_no_other(server: ComfyServer, tiny: str):
    choices = server.choices("TPECSaveScaledFP8", "folder")
    assert choices[:2] == ["models", "output"]
    other = next(name for name in choices if name == str(server.extra / "unet"))
    run = p.quantizing(f"diffusion_models/{tiny}")
    server.succeed({**run, **p.saving("on_another_disk", folder=other)})
    assert (server.extra / "unet" / "on_another_disk.safetensors").is_file()
    assert "on_another_disk.safetensors" in server.choices("UNETLoader", "unet_name")
    outcome = server.run({**run, **p.saving("never", folder=str(server.extra / "text"))})
    assert "do not look for diffusion_models" in outcome.error and "quantize" not in outcome.done
    with pytest.raises(PromptRefused, match="not in"):
        server.queue({**run, **p.saving("never", folder=str(server.extra))})


def test_missing_source_is_refused_before_anything_runs(server: ComfyServer, tiny: str):
    with pytest.raises(PromptRefused, match="no model file"):
        server.queue({**p.quantizing("diffusion_models/../../secret.safetensors"), **p.saving("never")})


def test_part_that_the_file_lacks_is_named(server: ComfyServer, tiny: str):
    outcome = server.run({
        **p.quantizing(f"diffusion_models/{tiny}"), "loaded": p.node("TPECLoadScaledFP8", quantized=["quantize", 0]),
        "latent": p.node("EmptySD3LatentImage", width=256, height=256, batch_size=1),
        "decode": p.node("VAEDecode", samples=["latent", 0], vae=["loaded", 2]),
        "show": p.node("PreviewImage", images=["decode", 0])})
    assert outcome.failed_node == "TPECLoadScaledFP8" and "holds no VAE" in outcome.error


def save_shards(folder: Path, stem: str, suffix: str = ".safetensors") -> dict[str, str]:
    """A model in two files; returns the index's table."""
    tensors = models.flux(hidden=128)
    names = sorted(tensors)
    parts = {f"{stem}-0000{number}-of-00002{suffix}": names[number - 1 :: 2] for number in (1, 2)}
    for file, held in parts.items():
        models.save({name: tensors[name] for name in held}, folder / file)
    return {name: file for file, held in parts.items() for name in held}


@pytest.mark.parametrize(("stem", "index"), [("indexed", "indexed.safetensors.index.json"), ("loose", None),
                                             ("half", "half.safetensors.index.fp16.json")])
def test_sharded_model_is_listed_once_and_quantized(server: ComfyServer, stem: str, index: str | None):
    folder = server.models / "diffusion_models"
    table = save_shards(folder, stem, ".sft" if index is None else ".safetensors")
    if index:
        (folder / index).write_text(json.dumps({"weight_map": table}))
    its = {f"diffusion_models/{name}" for name in (index, *table.values())}
    listed = [name for name in server.choices("TPECLoadCheckpoint", "checkpoint") if name in its]
    assert listed == [f"diffusion_models/{index or 'loose-00001-of-00002.sft'}"]
    server.succeed({**p.quantizing(listed[0]), **p.saving(f"joined {stem}")})


def test_shard_without_its_siblings_is_refused_by_their_names(server: ComfyServer):
    folder = server.models / "diffusion_models"
    save_shards(folder, "lone")
    (folder / "lone-00001-of-00002.safetensors").unlink()
    lone = p.quantizing("diffusion_models/lone-00002-of-00002.safetensors")
    with pytest.raises(PromptRefused, match="not complete without lone-00001-of-00002.safetensors"):
        server.queue({**lone, **p.saving("lone")})


def test_existing_name(server: ComfyServer, tiny: str):
    folder = server.models / "diffusion_models"
    taken = folder / "taken.safetensors"
    taken.write_bytes(b"somebody's file")
    run = p.quantizing(f"diffusion_models/{tiny}")
    outcome = server.run({**p.quantizing(f"diffusion_models/{tiny}", num_iter=3), **p.saving("taken")})
    assert "taken.safetensors" in outcome.error and "Nothing was computed yet" in outcome.error
    assert "quantize" not in outcome.done
    assert taken.read_bytes() == b"somebody's file"
    before = set(folder.iterdir())
    numbered = server.succeed({**run, **p.saving("taken", if_exists="number")})
    (new,) = set(folder.iterdir()) - before
    assert numbered.text("save").startswith(f"Saved as {new.name}\n") and taken.read_bytes() == b"somebody's file"
    server.succeed({**run, **p.saving("taken", if_exists="overwrite")})
    assert taken.stat().st_size > 1000
    assert leftovers(server) == []


def test_texts_that_travel_with_a_workflow_name_no_path_of_this_machine(server: ComfyServer, tiny: str):
    outcome = server.succeed({**p.quantizing(f"diffusion_models/{tiny}"), **p.saving("shared", if_exists="overwrite")})
    for node in ("load", "quantize", "save"):
        assert str(server.base) not in outcome.text(node)


def test_deleted_file_is_saved_again_and_an_intact_one_is_not(server: ComfyServer, tiny: str):
    prompt = {**p.quantizing(f"diffusion_models/{tiny}"), **p.saving("deleted")}
    saved = server.models / "diffusion_models" / "deleted.safetensors"
    server.succeed(prompt)
    state = saved.stat()
    assert "save" in server.succeed(prompt).cached
    assert saved.stat().st_mtime_ns == state.st_mtime_ns
    saved.unlink()
    outcome = server.succeed(prompt)
    assert saved.is_file() and {"load", "quantize"} <= outcome.cached and "save" not in outcome.cached
    assert "save" in server.succeed(prompt).cached


def test_emptied_temp_folder_is_made_up_for(server: ComfyServer, tiny: str):
    run = p.quantizing(f"diffusion_models/{tiny}", num_iter=1)
    server.succeed({**run, **p.saving("before")})
    shutil.rmtree(server.temp / "tpec")
    server.succeed({**run, **p.saving("after")})
    folder = server.models / "diffusion_models"
    assert (folder / "before.safetensors").read_bytes() == (folder / "after.safetensors").read_bytes()


@pytest.mark.parametrize("device", ["auto", "cpu,cpu"])
def test_interrupt_leaves_nothing_and_the_next_prompt_works(server: ComfyServer, tiny: str, device: str):
    models.save(models.flux(hidden=2048, double=2, single=2), server.models / "diffusion_models" / "large.safetensors")
    results = server.temp / "tpec" / "results"
    started = set(results.glob("*"))
    prompt_id = server.queue({**p.quantizing("diffusion_models/large.safetensors", device=device),
                              **p.saving("large_fp8")})
    end = time.monotonic() + 60
    while not set(results.glob("large*")) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    server.interrupt()
    stopped = server.wait(prompt_id, 30)
    assert stopped.interrupted and stopped.seconds < 5
    assert leftovers(server) == [] and set(results.glob("*")) <= started
    assert not (server.models / "diffusion_models" / "large_fp8.safetensors").exists()
    server.succeed({**p.quantizing(f"diffusion_models/{tiny}"), **p.saving("next", if_exists="overwrite")})
