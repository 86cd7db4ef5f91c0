"""What goes wrong with a conversion, and what each program makes of it: published script, convert-to-quant, this one.

    python -m benchmarks.peer_faults --published FOLDER --convert-to-quant EXECUTABLE

Every program converts the same small model in Flux layout, as a process of its own, with its fastest settings: the
cases are about files. Disk errors and kills come from `shim.c`, at the middle of the writes to the output's folder.
Linux with gcc only. A file counts as whole when the safetensors library reads it and no value in it is NaN.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .common import ROOT, environment, markdown_table
from .errands import flux_model
from .peers import FilePeer, add_arguments, convert_to_quant, published_script
from .shim import FOR_EVER, KILL, STOP, compiled, missing

_OLD = b"precious" * 100
_LAYER = "single_blocks.0.linear1.weight"


@dataclass
class Scene:
    """One program and one folder with its source; the shim's library."""

    peer: FilePeer
    folder: Path
    library: Path

    @property
    def source(self) -> Path:
        return self.folder / "in" / "model.safetensors"

    @property
    def output(self) -> Path:
        return self.folder / "out" / "q.safetensors"

    def start(self, action: int | None = None, nth: int = 1, times: int = FOR_EVER) -> subprocess.Popen:
        """Begin a conversion; with `action` for its writes to the output's folder, from the `nth` on."""
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if action is not None:
            env |= {"LD_PRELOAD": str(self.library), "SHIM_KIND": "write", "SHIM_PATH": str(self.output.parent),
                    "SHIM_ACTION": str(action), "SHIM_NTH": str(nth), "SHIM_TIMES": str(times)}
        return subprocess.Popen(self.peer.command(self.source, self.output), env=env, text=True, errors="replace",
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def end(self, process: subprocess.Popen, timeout: float = 240) -> str:
        """Exit code, state of the output, and the last words."""
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
        words = "a traceback" if "Traceback" in said else (said.strip().splitlines() or ["nothing"])[-1]
        words = words.replace(str(self.folder), "").strip()
        left = sorted({path.name for path in self.output.parent.iterdir()} - {self.output.name})
        return "; ".join([f"exit {process.returncode}", self.state(), f"says: {words[:160]}",
                          *([f"beside it: {', '.join(left)}"] if left else [])])

    def state(self) -> str:
        """What lies under the output's name."""
        if not self.output.exists():
            return "no file"
        if self.output.read_bytes() == _OLD:
            return "the old file"
        try:
            with safe_open(self.output, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except SafetensorError:
            return "A BROKEN FILE"
        bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.float().isnan().any()]
        rounded = sum(tensor.dtype == torch.float8_e4m3fn and tensor.ndim == 2 for tensor in tensors.values())
        return f"A FILE WITH NaN ({len(bad)} tensors)" if bad else f"whole file, {rounded} FP8 layers"


def _plain(scene: Scene) -> str:
    return scene.end(scene.start())


def _disturbed(action: int) -> Callable[[Scene], str]:
    def case(scene: Scene) -> str:
        return scene.end(scene.start(action, _middle(scene)))
    return case


def _middle(scene: Scene) -> int:
    """Half of the writes that an undisturbed run makes there, from a kill ever later; 1 for a program of one write."""
    nth = 1
    while nth < 1 << 12:
        process = scene.start(KILL, 2 * nth)
        process.communicate()
        if process.returncode == 0:
            break
        nth *= 4
    for path in scene.output.parent.iterdir():
        path.unlink()
    return max(1, nth // 2)


def _truncated(scene: Scene) -> str:
    os.truncate(scene.source, scene.source.stat().st_size // 2)
    return _plain(scene)


def _changed(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Scene], str]:
    def case(scene: Scene) -> str:
        tensors = flux_model(0)
        change(tensors)
        save_file(tensors, scene.source)
        return _plain(scene)
    return case


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[_LAYER][3, 5] = float("nan")


def _infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[_LAYER][3, 5] = float("inf")


def _quantized(tensors: dict[str, torch.Tensor]) -> None:
    codes = tensors[_LAYER].to(torch.float8_e4m3fn)
    codes.view(torch.uint8)[3, 5] = 0x7F
    tensors[_LAYER] = codes


def _lora(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name, tensor in tensors.items() if tensor.ndim == 2]:
        weight = tensors[name]
        tensors[f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}.lora_down.weight"] = weight[:16].clone()
    for name in [name for name in tensors if not name.startswith("lora_")]:
        del tensors[name]


def _overlap(scene: Scene) -> str:
    content = scene.source.read_bytes()
    scene.source.write_bytes(content.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1))
    return _plain(scene)


def _exists(scene: Scene) -> str:
    scene.output.write_bytes(_OLD)
    return _plain(scene)


def _exists_and_fails(scene: Scene) -> str:
    """The name is taken by an older file and its replacement ends half-way, where a program replaces at all."""
    nth = _middle(scene)
    scene.output.write_bytes(_OLD)
    return scene.end(scene.start(KILL, nth))


def _two_runs(scene: Scene) -> str:
    """The second begins while the first stands still in the middle of its writes, and ends before that goes on."""
    first = scene.start(STOP, _middle(scene), 1)
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    second = scene.end(scene.start())
    os.kill(first.pid, signal.SIGCONT)
    return f"second: {second}; then the first: {scene.end(first)}"


CASES: dict[str, Callable[[Scene], str]] = {
    "nothing wrong": _plain,
    "killed (SIGKILL) half-way through writing": _disturbed(KILL),
    "disk full half-way (ENOSPC)": _disturbed(28),
    "disk fails half-way (EIO)": _disturbed(5),
    "source cut off half-way": _truncated,
    "source header with overlapping tensors": _overlap,
    "a NaN in a weight": _changed(_nan),
    "an infinite weight": _changed(_infinite),
    "source quantized already, with a NaN code": _changed(_quantized),
    "a LoRA in place of a model": _changed(_lora),
    "output exists": _exists,
    "output exists, killed half-way": _exists_and_fails,
    "two runs to one output": _two_runs,
}


def _ours(source: Path, target: Path) -> list[str]:
    return [sys.executable, "-m", "tpec", "quantize", str(source), "-o", str(target), "--quiet", "--method", "nearest",
            "--device", "cpu"]


def main() -> None:
    if reason := missing():
        raise SystemExit(f"skipped: {reason}")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--only", default="", help="cases whose title contains this")
    args = parser.parse_args()
    peers = [published_script(args.published, "svd_fast", ("--num_iter", "2", "--calib_samples", "8"))]
    if convert_to_quant(args.convert_to_quant) is not None:
        peers.append(FilePeer("convert-to-quant", lambda source, target: [
            str(args.convert_to_quant), "--input", str(source), "--output", str(target), "--comfy_quant", "--simple",
            "--optimizer", "original", "--device", "cpu", "--manual_seed", "0"]))
    programs = [*filter(None, peers), FilePeer("this project", _ours)]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        library = compiled(Path(place))
        for title, case in CASES.items():
            for peer in programs if args.only in title else ():
                with tempfile.TemporaryDirectory(dir=place) as folder:
                    scene = Scene(peer, Path(folder), library)
                    for path in (scene.source, scene.output):
                        path.parent.mkdir()
                    save_file(flux_model(0), scene.source)
                    rows.append([title, peer.title, case(scene)])
                    print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    print(f"{environment()}\n\n{markdown_table(('case', 'program', 'what happens'), rows)}")


if __name__ == "__main__":
    main()
