"""What a ComfyUI server is given in `soak`: quantizations and calibrations at random, some of them wrong."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prompts as p
import torch
from comfy_server import ComfyServer, link
from models import flux, lora
from safetensors.torch import load_file, save_file

Nodes = dict[str, dict[str, Any]]

MODEL, OTHER, NAN, LORA = "soak.safetensors", "other.safetensors", "nan.safetensors", "soak_lora.safetensors"
#: Calibrations that stay: plain and with sensitivity.
KEPT = ("kept", "kept_sensitivity")
#: Names to save under. The save nodes remember the last thousand, which no soak gets to: ever new ones would look like
#: growth without end.
_NAMES = 20
_AUTO_SHARE, _WRONG_SHARE = 0.06, 0.1


@dataclass(frozen=True)
class Job:
    """An API prompt; what its error says if it must have one; the names it saves under."""

    kind: str
    nodes: Nodes
    fails: str | None = None
    saved: tuple[str, ...] = ()


def furnish(server: ComfyServer, model: Path | None, conditioning: Path | None) -> None:
    """Models, a LoRA and conditionings for the jobs; without a model a small one with random weights."""
    folder = server.models / "diffusion_models"
    small = flux(hidden=128, seed=1)
    if model is not None and conditioning is not None:
        link(model, folder / MODEL)
        link(conditioning, server.base / "input" / p.CONDITIONING)
    else:
        save_file(small, folder / MODEL)
        make = torch.Generator().manual_seed(0)
        save_file({"context": torch.randn(8, 8, 64, generator=make), "pooled": torch.randn(8, 64, generator=make)},
                  server.base / "input" / p.CONDITIONING)
    save_file(flux(hidden=256, seed=2), folder / OTHER)
    small["single_blocks.0.linear1.weight"][3, 5] = torch.nan
    save_file(small, folder / NAN)
    (server.models / "loras").mkdir(exist_ok=True)
    save_file(lora(load_file(folder / MODEL)), server.models / "loras" / LORA)


def calibrating(steps: int, seed: int, sensitivity: bool, model: str = MODEL, count: int = 1, runs: int = 1,
                **more: object) -> Nodes:
    """Nodes up to `calibrate`."""
    nodes = {**p.stock_loader(model), **p.sampling(["model", 0], "unused", count=count)}
    del nodes["sampler"], nodes["keep"]
    nodes["calibrate"] = p.node(
        "TPECCalibrate", model=["model", 0], positive=["positive", 0], negative=["negative", 0],
        latent_image=["latent", 0], seed=seed, steps=steps, cfg=3.0, sampler_name="euler", scheduler="simple",
        runs=runs, sensitivity=sensitivity, **more)
    return nodes


def _name(number: int) -> str:
    return f"soak{number % _NAMES}"


def storing(name: str) -> Nodes:
    return {"store": p.node("TPECSaveCalibration", calibration=["calibrate", 0], name=name, if_exists="overwrite")}


def first_ones() -> list[Nodes]:
    """What is kept for the jobs, and each way through the libraries once: what those take with their first call, they
    keep, and it must not look like growth."""
    def shown(node: str) -> Nodes:
        return {"show": p.node("PreviewAny", source=[node, 1])}

    model, first = f"diffusion_models/{MODEL}", []
    for name, sensitivity in zip(KEPT, (False, True), strict=True):
        kept = {"kept": p.node("TPECLoadCalibration", name=f"{name}.safetensors")}
        first += [
            {**calibrating(2, 1, sensitivity), **storing(name)},
            {**kept, **calibrating(2, 2, sensitivity, calibration=["kept", 0]), **shown("calibrate")},
            {**kept, **p.quantizing(model, calibration=["kept", 0], matmul="auto"), **shown("quantize")}]
    return first + [{**p.quantizing(model, method=method), **shown("quantize")} for method in ("nearest", "tpec")]


class Jobs:
    """Jobs one after another; equal seeds give equal jobs. `folder` is that of the diffusion models."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._random = random.Random(seed)
        self._folder = folder
        self._number = 0

    def calibration(self) -> Job:
        """Two to four steps, with and without sensitivity, sometimes added to an earlier one."""
        draw, number = self._random, self._next()
        sensitivity = draw.random() < 0.5
        how = {"steps": draw.randint(2, 4), "seed": number, "sensitivity": sensitivity, "count": draw.randint(1, 2),
               "runs": draw.randint(1, 2)}
        kept = {"kept": p.node("TPECLoadCalibration", name=f"{draw.choice(KEPT)}.safetensors")}
        if draw.random() < _WRONG_SHARE:
            nodes = {**kept, **calibrating(**how, model=OTHER, calibration=["kept", 0]), **storing(_name(number))}
            return Job("calibrate, wrong", nodes, "of different models")
        nodes = calibrating(**how)
        if draw.random() < 0.25:
            nodes = {**kept, **calibrating(**how, calibration=["kept", 0])}
        kind = f"calibrate{', sensitivity' if sensitivity else ''}"
        return Job(kind, {**nodes, **storing(_name(number))}, None, (_name(number),))

    def quantization(self) -> Job:
        """Plain or tpec, from a file or a MODEL, with and without a calibration or one of its own."""
        draw, number = self._random, self._next()
        if draw.random() < _WRONG_SHARE:
            return self._wrong(number)
        # Every job is another one, or its result would come from the one before.
        settings: dict[str, Any] = {
            "method": "tpec" if draw.random() < 0.7 else "nearest", "num_iter": draw.randint(0, 2),
            "exclude": f"never{number}", "format": draw.choice(("universal", "comfy_quant", "scaled_fp8"))}
        kind, nodes = settings["method"], Nodes()
        if settings["method"] == "tpec":
            part = draw.random()
            if part < _AUTO_SHARE:
                kind, settings["calibrate"] = "tpec, calibrate auto", "auto"
            elif part < 0.5:
                kind, settings["calibration"] = "tpec, calibrated", ["kept", 0]
                settings["matmul"] = draw.choice(("full_precision", "fp8", "auto"))
                nodes["kept"] = p.node("TPECLoadCalibration", name=f"{draw.choice(KEPT)}.safetensors")
        nodes |= self._source(number, settings)
        if draw.random() < 0.7:
            return Job(kind, {**nodes, **p.saving(_name(number))}, None, (_name(number),))
        return Job(kind, {**nodes, "show": p.node("PreviewAny", source=["quantize", 1])})

    def _source(self, number: int, settings: dict[str, Any]) -> Nodes:
        """The file, another file of the same content if the model is to calibrate itself, or a MODEL."""
        if self._random.random() < 0.25:
            nodes = {**p.stock_loader(MODEL), **p.with_lora(LORA)}
            return {**nodes, **p.quantizing_model([self._random.choice(("model", "lora")), 0], **settings)}
        name = MODEL
        if "calibrate" in settings:
            name = f"copy{number}.safetensors"
            link(self._folder / MODEL, self._folder / name)
        return p.quantizing(f"diffusion_models/{name}", **settings)

    def _wrong(self, number: int) -> Job:
        kept = {"kept": p.node("TPECLoadCalibration", name=f"{KEPT[0]}.safetensors")}
        good = f"diffusion_models/{MODEL}"
        cases: list[tuple[str, Callable[[], Nodes]]] = [
            ("gone.safetensors", lambda: p.quantizing("diffusion_models/gone.safetensors")),
            ("NaN", lambda: p.quantizing(f"diffusion_models/{NAN}", exclude=f"never{number}")),
            ("another model", lambda: {**kept, **p.quantizing(f"diffusion_models/{OTHER}", calibration=["kept", 0])}),
            ("matmul auto needs a calibration", lambda: p.quantizing(good, matmul="auto")),
            ("expression", lambda: p.quantizing(good, include=f"(never{number}"))]
        words, nodes = self._random.choice(cases)
        return Job("wrong", {**nodes(), **p.saving(_name(number))}, words)

    def _next(self) -> int:
        self._number += 1
        return self._number
