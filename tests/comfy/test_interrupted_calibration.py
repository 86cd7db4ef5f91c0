"""Interrupted while it calibrates itself, at whatever moment, a model is as before, and so is everything around it."""

import json
import time
from pathlib import Path

import models
import prompts as p
import pytest
import torch
from comfy_server import ComfyServer, Outcome
from safetensors.torch import save_file

MODEL, STORED = "interrupted.safetensors", "interrupted_conditioning.safetensors"
STARTS, WRITTEN = "calibrating first", "statistics written"


@pytest.fixture(scope="module")
def model(server: ComfyServer) -> str:
    """A Flux layout with random weights, fast to sample, and a conditioning for it."""
    models.save(models.flux(hidden=128, seed=21), server.models / "diffusion_models" / MODEL)
    make = torch.Generator().manual_seed(0)
    save_file({"context": torch.randn(1, 8, 64, generator=make), "pooled": torch.randn(1, 64, generator=make)},
              server.base / "input" / STORED)
    return MODEL


class Witness:
    """Samples with the model of the graph, each time anew, and asks what lives in the server."""

    def __init__(self, server: ComfyServer) -> None:
        self._server, self._count = server, 0

    def look(self) -> tuple[torch.Tensor, dict, Outcome]:
        self._count += 1
        nodes = {**p.stock_loader(MODEL), **p.sampling(["model", 0], f"witness{self._count}", steps=2),
                 "facts": p.node("TestServerFacts")}
        for side in ("positive", "negative"):
            nodes[side]["inputs"]["filename"] = STORED
        # As good as 1, and not from the cache.
        nodes["sampler"]["inputs"]["denoise"] = 1 - self._count * 1e-5
        outcome = self._server.succeed(nodes)
        facts = json.loads(outcome.text("facts"))
        lasting = {name: facts[name] for name in ("hooks", "patched", "borrowed")}
        return p.saved_latent(self._server, outcome), lasting, outcome


def files(server: ComfyServer) -> set[Path]:
    """Files and folders of the temp folder; the pack's own two folders are no leftovers."""
    return {path for path in server.temp.rglob("*") if path.is_file() or path.name.startswith("passes-")}


def by_itself(source: dict[str, dict]) -> dict[str, dict]:
    return {**source, "show": p.node("PreviewAny", source=["quantize", 1])}


def of_file(model: str) -> dict[str, dict]:
    return by_itself(p.quantizing(f"diffusion_models/{model}", calibrate="auto"))


def of_graph(model: str) -> dict[str, dict]:
    """The same model in the graph; the evaluations of its network are logged."""
    watched = {**p.stock_loader(model), "watched": p.node("TestLogEvaluations", model=["model", 0])}
    return by_itself({**watched, **p.quantizing_model(["watched", 0], calibrate="auto")})


#: The words of the log that say that it has come so far, one after another.
MOMENTS = {
    "loading": (of_file, ("got prompt",)),
    "loaded": (of_file, ("model_type",)),
    "trying": (of_graph, ("TEST evaluation forward",)),
    "starting": (of_graph, (STARTS,)),
    "sampling": (of_graph, (STARTS, "TEST evaluation forward")),
    "backward": (of_graph, (STARTS, "TEST evaluation backward")),
    "rounding": (of_graph, (WRITTEN,)),
}


@pytest.mark.parametrize("moment", [
    pytest.param(name, marks=pytest.mark.slow if name == "rounding" else ()) for name in MOMENTS])
def test_everything_is_as_before(server: ComfyServer, model: str, figures: list[str], moment: str):
    make, words = MOMENTS[moment]
    witness = Witness(server)
    before, lasting, _ = witness.look()
    temp, start = files(server), len(server.log())
    prompt_id = server.queue(make(model))
    at = start
    for word in words:
        server.wait_for_log(word, at, 580)
        at = server.log().index(word, at) + len(word)
    begun = time.monotonic()
    server.interrupt()
    assert server.wait(prompt_id, 580).interrupted
    figures.append(f"interrupted at '{moment}': stopped after {time.monotonic() - begun:.1f} s")
    new = files(server) - temp
    if moment == "rounding":
        assert [path.parent.name for path in new] == ["calibrations"], "what was learned is kept for the next time"
    else:
        assert not new
    after, lasting_now, outcome = witness.look()
    assert torch.equal(before, after) and lasting_now == lasting
    if make is of_graph:
        assert "model" in outcome.cached, "the very model that was interrupted"
    if moment == "rounding":
        finished = server.succeed(make(model), 580)
        assert "calibrated itself: " in finished.text("quantize")
        assert server.log()[start:].count(STARTS) == 1
