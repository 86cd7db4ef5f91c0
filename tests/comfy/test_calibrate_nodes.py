"""Calibrating with ComfyUI's own sampler, and what it gains."""

import copy
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import models
import prompts as p
import pytest
import torch
from comfy_server import REPOSITORY, ComfyServer

from tpec.check.verify import verify
from tpec.statistics.calibration import Calibration
from tpec.statistics.inputs import Gram, HeldInputs
from tpec.statistics.storage import open_calibration, save_calibration


def calibrating(model: str, first: int = 32, count: int = 4, steps: int = 6, runs: int = 1, seed: int = 5,
                **more: object) -> dict[str, dict]:
    """Nodes that sample with the bf16 model and collect: `calibrate`."""
    nodes = {**p.stock_loader(model), **p.sampling(["model", 0], "unused", first=first, count=count)}
    del nodes["sampler"], nodes["keep"]
    nodes["watched"] = p.node("TestLogEvaluations", model=["model", 0])
    nodes["calibrate"] = p.node(
        "TPECCalibrate", model=["watched", 0], positive=["positive", 0], negative=["negative", 0],
        latent_image=["latent", 0], seed=seed, steps=steps, cfg=3.0, sampler_name="euler", scheduler="simple",
        runs=runs, **more)
    return nodes


def calibrated(model: str, name: str, **sampling: object) -> dict[str, dict]:
    return {**calibrating(model, **sampling),
            **p.quantizing(f"diffusion_models/{model}", calibration=["calibrate", 0]), **p.saving(name)}


def velocity_ratio(file: Path) -> float:
    """The file's velocity error against round to nearest's, by the project's own measure."""
    script = Path(os.environ.get("TPEC_SHARED_FIDELITY") or REPOSITORY.parent / "shared" / "fidelity",
                  "velocity_error.py")
    if not script.is_file():
        pytest.skip(f"no {script}")
    run = subprocess.run([sys.executable, script, file], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)["ratio_to_round_to_nearest"]


_times = itertools.count(1)


def sampled_anew(server: ComfyServer, sample: dict[str, dict]) -> torch.Tensor:
    """The latent of a sampling with all steps, never from ComfyUI's cache."""
    nodes = copy.deepcopy(sample)
    nodes["sampler"]["inputs"]["denoise"] = 1 - next(_times) * 1e-5
    nodes["keep"]["inputs"]["filename_prefix"] = "anew"
    outcome = server.succeed(nodes)
    assert "sampler" not in outcome.cached
    return p.saved_latent(server, outcome)


def test_a_little_calibration_beats_none_by_far(server: ComfyServer, tinyflux: str, figures):
    outcome = server.succeed(calibrated(tinyflux, "calibrated"))
    assert "lower than plain FP8" in outcome.text("quantize")
    folder = server.models / "diffusion_models"
    result = verify(folder / tinyflux, folder / "calibrated.safetensors")
    assert result.ok and result.corrected, result.text()
    ratio = velocity_ratio(folder / "calibrated.safetensors")
    figures.append(f"4 prompts x 6 steps of calibration: velocity error {ratio:.3f} x round to nearest's")
    assert ratio < 0.75


def test_interrupt_leaves_no_hooks_and_the_same_model(server: ComfyServer, tinyflux: str):
    sample = {**p.stock_loader(tinyflux), **p.sampling(["model", 0], "before", steps=2)}
    before = p.saved_latent(server, server.succeed(sample))
    start = len(server.log())
    prompt_id = server.queue({**calibrating(tinyflux, steps=2000, seed=6),
                              "show": p.node("PreviewAny", source=["calibrate", 1])})
    server.wait_for_log("TEST evaluation forward", start)
    server.interrupt()
    assert server.wait(prompt_id).interrupted
    assert torch.equal(before, sampled_anew(server, sample))


def test_sensitivity_beats_plain_calibration(server: ComfyServer, tinyflux: str, figures):
    def nodes(name: str, **more: object) -> dict[str, dict]:
        return {**calibrated(tinyflux, name, count=2, steps=6, **more),
                "store": p.node("TPECSaveCalibration", calibration=["calibrate", 0], name=name, if_exists="overwrite")}

    sample = {**p.stock_loader(tinyflux), **p.sampling(["model", 0], "untouched", steps=2)}
    before = p.saved_latent(server, server.succeed(sample))
    server.succeed(nodes("without"))
    outcome = server.succeed(nodes("with", sensitivity=True), 580)
    assert "lower than plain FP8" in outcome.text("quantize")
    assert torch.equal(before, sampled_anew(server, sample))
    stats = [open_calibration(server.output / "tpec_calibration" / f"{name}.safetensors").in_memory()
             for name in ("without", "with")]
    for name, inputs in stats[0].groups.items():
        other = stats[1].groups[name]
        assert torch.equal(inputs.second_moment(), other.second_moment()), "backward runs must not count as inputs"
    assert not stats[0].outputs
    blocks = {name for name in stats[1].outputs if "_blocks." in name}
    assert len(blocks) == 28 and not any("mod" in name for name in blocks)
    ratios = [velocity_ratio(server.models / "diffusion_models" / f"{name}.safetensors")
              for name in ("without", "with")]
    figures.append(f"2 prompts x 6 steps: velocity error {ratios[0]:.3f} x, with sensitivity {ratios[1]:.3f} x")
    assert ratios[1] < 0.95 * ratios[0]


@pytest.mark.parametrize("tokens", [0, 7])
def test_sensitivity_sees_both_sides_of_the_guidance(server: ComfyServer, tinyflux: str, tokens: int):
    """Also where ComfyUI evaluates them one after the other, as it does with prompts of different lengths."""
    nodes = calibrating(tinyflux, count=1, steps=4, runs=4, seed=8, sensitivity=True)
    nodes["negative"]["inputs"]["tokens"] = tokens
    # Added to another, there are no samplings without a prompt beside it.
    nodes["first"] = p.node("TPECCalibrate", **{**nodes["calibrate"]["inputs"], "model": ["model", 0], "steps": 1})
    nodes["calibrate"]["inputs"]["calibration"] = ["first", 0]
    start = len(server.log())
    server.succeed({**nodes, "show": p.node("PreviewAny", source=["calibrate", 1])}, 580)
    seen = Counter(re.findall(r"TEST evaluation (\w+) of ([01+]+)", server.log()[start:]))
    assert seen == ({("forward", "0"): 16, ("forward", "1"): 16, ("backward", "0"): 4, ("backward", "1"): 4}
                    if tokens else {("forward", "0+1"): 16, ("backward", "0+1"): 4})


def test_no_scratch_memory_is_left(server: ComfyServer, tinyflux: str):
    """cuBLAS keeps some for each pair of a thread and a stream, and sampling with gradients has a thread of its own."""
    if server.cpu:
        pytest.skip("ComfyUI runs on the CPU: set COMFYUI_GPU=1")
    server.succeed({**calibrating(tinyflux, count=1, steps=2, seed=17, sensitivity=True),
                    "show": p.node("PreviewAny", source=["calibrate", 1])})
    assert p.freed(server)["allocated"] == 0


def test_interrupt_of_a_backward_run_leaves_the_same_model(server: ComfyServer, tinyflux: str):
    sample = {**p.stock_loader(tinyflux), **p.sampling(["model", 0], "intact", steps=2)}
    before = p.saved_latent(server, server.succeed(sample))
    start = len(server.log())
    prompt_id = server.queue({**calibrating(tinyflux, count=8, steps=2000, seed=6, sensitivity=True),
                              "show": p.node("PreviewAny", source=["calibrate", 1])})
    server.wait_for_log("TEST evaluation backward", start)
    server.interrupt()
    assert server.wait(prompt_id).interrupted
    assert torch.equal(before, sampled_anew(server, sample))


def test_saved_loaded_and_extended(server: ComfyServer, tinyflux: str):
    server.succeed({**calibrating(tinyflux, count=1, steps=2),
                    "store": p.node("TPECSaveCalibration", calibration=["calibrate", 0], name="kept",
                                    if_exists="overwrite")})
    assert (server.output / "tpec_calibration" / "kept.safetensors").is_file()
    assert "kept.safetensors" in server.choices("TPECLoadCalibration", "name")
    loaded = {"kept": p.node("TPECLoadCalibration", name="kept.safetensors")}
    outcome = server.succeed({
        **loaded, **calibrating(tinyflux, count=1, steps=2, seed=9, calibration=["kept", 0]),
        "one": p.node("PreviewAny", source=["kept", 1]), "two": p.node("PreviewAny", source=["calibrate", 1])})
    assert "1 runs" in outcome.text("one") and "2 runs" in outcome.text("two")


def test_several_passes_give_what_one_gives(server: ComfyServer, tinyflux: str, figures):
    def nodes(name: str, megabytes: int) -> dict[str, dict]:
        sampling = calibrating(tinyflux, count=1, steps=2, sensitivity=True)
        # ComfyUI would take positive and negative one after another where memory is short: other evaluations.
        sampling["calibrate"]["inputs"] |= {"model": ["memory", 0], "cfg": 1.0}
        del sampling["watched"]
        return {**sampling, "memory": p.node("TestFreeMemory", model=["model", 0], megabytes=megabytes),
                "store": p.node("TPECSaveCalibration", calibration=["calibrate", 0], name=name, if_exists="overwrite")}

    try:
        server.succeed(nodes("passes", 100), 580)
    finally:
        server.succeed(nodes("pass", 0), 580)
    whole, joined = (open_calibration(server.output / "tpec_calibration" / f"{name}.safetensors").in_memory()
                     for name in ("pass", "passes"))
    log = server.log()
    passes = re.findall(r"statistics of .* in (\d+) passes", log)
    assert passes and int(passes[-1]) > 2, log[-2000:]
    figures.append(f"100 MB of free memory: {passes[-1]} passes")
    assert set(joined.layers) == set(whole.layers) and joined.runs == whole.runs
    assert joined.outputs.keys() == whole.outputs.keys() != set()
    pairs = [(joined.stats(name).second_moment(), whole.stats(name).second_moment()) for name in whole.layers]
    pairs += [(joined.outputs[name].second_moment(), stats.second_moment()) for name, stats in whole.outputs.items()]
    # Memory lies elsewhere in each run, so that MKL may sum in another order: some codes differ by one. On a GPU two
    # samplings differ by themselves.
    assert max((a - b).norm() / b.norm() for a, b in pairs) < (1e-2 if server.cpu else 2e-2)
    assert not list(server.temp.rglob("passes-*")), "the passes' own files are gone"


def test_a_saved_copy_follows_its_source(server: ComfyServer):
    """The file behind a loaded calibration keeps its path when it is made anew."""
    folder = server.output / "tpec_calibration"
    folder.mkdir(exist_ok=True)
    copying = {"kept": p.node("TPECLoadCalibration", name="source.safetensors"),
               "store": p.node("TPECSaveCalibration", calibration=["kept", 0], name="copy", if_exists="overwrite")}
    for tokens in (10, 20):
        inputs = HeldInputs(torch.ones(8), 1.0, tokens, Gram(torch.eye(8)))
        save_calibration(Calibration({"a": inputs}, {"a": "a"}, "hash"), folder / "source.safetensors", overwrite=True)
        server.succeed(copying)
        assert open_calibration(folder / "copy.safetensors").stats("a").tokens == tokens


def test_calibration_of_another_model_is_not_added_to(server: ComfyServer, tinyflux: str):
    server.succeed({**calibrating(tinyflux, count=1, steps=2),
                    "store": p.node("TPECSaveCalibration", calibration=["calibrate", 0], name="ours",
                                    if_exists="overwrite")})
    models.save(models.flux(hidden=128), server.models / "diffusion_models" / "other.safetensors")
    outcome = server.run({
        "kept": p.node("TPECLoadCalibration", name="ours.safetensors"),
        **calibrating("other.safetensors", count=1, steps=1000, calibration=["kept", 0]),
        "show": p.node("PreviewAny", source=["calibrate", 1])}, 60)
    assert outcome.failed_node == "TPECCalibrate" and "of different models" in outcome.error


def test_calibration_of_another_model_is_refused(server: ComfyServer, tinyflux: str):
    models.save(models.flux(hidden=128), server.models / "diffusion_models" / "other.safetensors")
    outcome = server.run({**calibrating(tinyflux, count=1, steps=1), **p.saving("never"),
                          **p.quantizing("diffusion_models/other.safetensors", calibration=["calibrate", 0])})
    assert outcome.failed_node == "TPECQuantizeFP8" and "another model" in outcome.error
