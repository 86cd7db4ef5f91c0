"""The commands that `fault_matrix` disturbs, with the files that each begins with."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tpec.command.demo import flux_shapes
from tpec.command.terminal import FAILED, FAILURES, complain
from tpec.errors import sentence
from tpec.files.partial import partial_path
from tpec.files.plain import write_safetensors
from tpec.files.publish import publish
from tpec.statistics.calibration import Calibration, hash_layers
from tpec.statistics.inputs import Gram, HeldInputs
from tpec.statistics.storage import open_calibration, save_calibration

from .commands import Command, command
from .injections import Bench, Errand
from .shim import KILL, Fault
from .synthetic import generator

SOURCE, OUTPUT, STATISTICS = "model.safetensors", "q.safetensors", "stats.safetensors"
_NEAREST = ("--method", "nearest")


def _engine(work: Callable[[Path], object]) -> Callable[[Path], int]:
    """What the nodes call, with the command line's way to fail."""
    def run(folder: Path) -> int:
        try:
            work(folder)
        except FAILURES as error:
            complain(sentence(error))
            return FAILED
        return 0

    return run


def _quantize(*more: str, source: str = SOURCE) -> Command:
    return command("quantize", f"@{source}", "-o", f"@{OUTPUT}", "--quiet", "--device", "cpu", *more)


def flux_model(seed: int) -> dict[str, torch.Tensor]:
    """Flux layout without its larger layers: a run of few calls. A LayerNorm's scale per block is kept as it is."""
    random, shapes = generator(seed, "cpu"), flux_shapes(128, 1, 1)
    return {name: (torch.randn(shape, generator=random) * 0.03).bfloat16() for name, shape in shapes.items()}


def _calibration(model: dict[str, torch.Tensor], seed: int = 0) -> Calibration:
    """Statistics of one layer's inputs, made up."""
    shapes = {name.removesuffix(".weight"): tuple(tensor.shape) for name, tensor in model.items() if tensor.ndim == 2}
    layer = "single_blocks.0.linear1"
    rows = torch.randn(400, shapes[layer][1], generator=generator(seed, "cpu"))
    inputs = HeldInputs(rows.mean(0), float(rows.abs().max()), len(rows), Gram(rows.mT @ rows / len(rows)))
    return Calibration({"a": inputs}, {layer: "a"}, hash_layers(shapes), SOURCE, 1, shapes=shapes)


def _write_shards(folder: Path, model: dict[str, torch.Tensor]) -> None:
    names = list(model)
    halves = names[:len(names) // 2], names[len(names) // 2:]
    for at, half in enumerate(halves, 1):
        write_safetensors(folder / f"m-{at:05}-of-00002.safetensors", {name: model[name] for name in half}, {})


def _half_done(bench: Bench, files: Path) -> None:
    """Add to `files` what a run leaves that is killed when a third of its writes is done."""
    bench.restore(Errand("", _quantize(), _quantize(), OUTPUT, files))
    bench.run(_quantize(*_NEAREST, "--resume"), Fault("write", KILL, 120, path=str(bench.folder)))
    for path in bench.folder.glob(f"{partial_path(bench.folder / OUTPUT).name}*"):
        if not path.name.endswith(".lock"):
            shutil.copy2(path, files)
    assert any(path.stat().st_size for path in files.glob("*.journal0"))


def make_errands(bench: Bench, templates: Path, other_disk: Path | None) -> list[Errand]:
    """All errands; their files are made in `templates`.

    other_disk: an empty folder that cannot be linked from, None where there is no such disk.
    """
    model = flux_model(0)
    places = {}
    for name in ("plain", "old", "resumed", "shards", "both", "statistics", "published"):
        places[name] = templates / name
        places[name].mkdir(parents=True)
    for name in ("plain", "old", "resumed", "both"):
        write_safetensors(places[name] / SOURCE, model, {"title": "made up"})
    # As the biases are, other tensors are copied; there are enough calls without them.
    _write_shards(places["shards"], {name: tensor for name, tensor in model.items() if not name.endswith(".bias")})
    for name in ("old", "statistics", "published"):
        (places[name] / (STATISTICS if name == "statistics" else OUTPUT)).write_bytes(b"precious" * 1000)
    save_calibration(_calibration(model), places["old"] / STATISTICS)
    _half_done(bench, places["resumed"])
    bench.restore(Errand("", _quantize(), _quantize(), OUTPUT, places["both"]))
    assert bench.run(_quantize(*_NEAREST)).code == 0
    shutil.copy2(bench.folder / OUTPUT, places["both"])
    errands = [*_quantizing(places), *_reading(places["both"]), _saving(places["statistics"], _calibration(model))]
    if other_disk is not None:
        made = other_disk / OUTPUT
        shutil.copyfile(places["both"] / OUTPUT, made)
        errands.append(_publishing(places["published"], made))
    read = _engine(lambda folder: open_calibration(folder / STATISTICS).in_memory())
    errands.append(Errand("read a calibration", read, read, None, places["old"]))
    return errands


def _quantizing(places: dict[str, Path]) -> list[Errand]:
    resumed, again = _quantize(*_NEAREST, "--resume"), _quantize(*_NEAREST, "--resume", "--overwrite")
    # Rounding with care takes its time: the layers of the single block are enough for every kind of call.
    calibrated = ("--overwrite", "--calibration", f"@{STATISTICS}", "--exclude", "double_blocks")
    first, second = (f"m-{at:05}-of-00002.safetensors" for at in (1, 2))
    return [
        Errand("quantize, nearest", _quantize(*_NEAREST), again, OUTPUT, places["plain"],
               source=SOURCE),
        Errand("quantize, tpec, calibrated, over an old file", _quantize(*calibrated),
               _quantize(*calibrated, "--resume"), OUTPUT, places["old"], source=SOURCE),
        Errand("quantize --resume, half done", resumed, again, OUTPUT, places["resumed"], keeps=True,
               source=SOURCE),
        Errand("quantize shards", _quantize(*_NEAREST, source=first),
               _quantize(*_NEAREST, "--resume", "--overwrite", source=first), OUTPUT, places["shards"], source=second),
        Errand("--write-recipe", *[_quantize(*_NEAREST, "--dry-run", "--write-recipe", "@r.json")] * 2, "r.json",
               places["plain"]),
    ]


def _reading(files: Path) -> list[Errand]:
    verify, inspect = command("verify", f"@{SOURCE}", f"@{OUTPUT}"), command("inspect", f"@{SOURCE}")
    return [Errand("verify", verify, verify, None, files), Errand("inspect", inspect, inspect, None, files)]


def _saving(files: Path, calibration: Calibration) -> Errand:
    run = _engine(lambda folder: save_calibration(calibration, folder / STATISTICS, overwrite=True))
    return Errand("save a calibration over an old one", run, run, STATISTICS, files)


def _publishing(files: Path, made: Path) -> Errand:
    run = _engine(lambda folder: publish(made, folder / OUTPUT, "overwrite"))
    return Errand("publish from another disk, over an old file", run, run, OUTPUT, files)


def kinds_of(errand: Errand) -> Sequence[str]:
    """The kinds of calls that can matter: one that only reads neither syncs nor renames."""
    reading = ("open", "read", "stat", "list", "close", "advise", "map")
    return reading if errand.product is None else (*reading, "write", "copy", "sync", "truncate", "rename", "link",
                                                   "unlink", "lock", "mkdir")


def disturbed(errand: Errand) -> bool:
    """Whether others change what it reads and writes meanwhile: those that quantize a model."""
    return errand.product == OUTPUT and bool(errand.source)
