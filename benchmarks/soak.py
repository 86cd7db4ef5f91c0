"""One ComfyUI server, many jobs, a third of them interrupted at random: what is left behind.

    python -m benchmarks.soak --shared ../shared --gpu

Starts the ComfyUI of the tests (COMFYUI_PATH, COMFYUI_PYTHON) with this pack and tinyflux, and gives it quantizations
and calibrations of every kind (soak_jobs.py) in random order, wrong ones among them. Saved files are deleted at once.
Every few jobs the server is looked at, as it is and once it has sampled with the bf16 model and been told to free its
models and cache and to forget its history: memory of its own (without what the system lends it from files), how much
of it malloc has given out, VRAM, open files, threads, the temp folder, and from inside by a node of the tests how many
hooks, patched modules and objects of this pack there are. Exit code 1 when a job did not end as it must, when something
is left behind, or when anything grows in the second half.
"""

import argparse
import hashlib
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import prompts as p
from comfy_server import TINYFLUX, ComfyServer, PromptRefused

from .common import environment, markdown_table
from .server import comfy, own_memory
from .soak_jobs import MODEL, Job, Jobs, first_ones, furnish

#: Seconds that one prompt may take on a slow machine.
_PATIENCE = 3600
#: Of the jobs, how many are interrupted.
_INTERRUPTED = 1 / 3


@dataclass(frozen=True)
class Look:
    """A server after so many jobs. Memory in MB; `busy` before it was told to free what it can."""

    jobs: int
    busy: float
    memory: float
    given_out: float
    allocated: float
    vram: float
    handles: int
    threads: int
    temp_files: int
    temp: float
    output_files: int
    objects: int
    tensors: int
    hooks: int
    patched: int
    models: int
    borrowed: str
    names: str
    latent: str


@dataclass(frozen=True)
class Row:
    """A line of the table; `least`: growth per job that is taken for none, None: must be as at the start."""

    title: str
    of: Callable[[Look], object]
    least: float | None = None


ROWS = (
    Row("memory while it works, MB", lambda look: look.busy, 0.5),
    Row("memory, models and cache freed, MB", lambda look: look.memory, 0.1),
    Row("of it given out by malloc, MB", lambda look: look.given_out, 0.02),
    Row("VRAM that PyTorch holds tensors in, MB", lambda look: look.allocated, 0.01),
    Row("VRAM in use on the card, MB", lambda look: look.vram, 0.1),
    Row("open files and sockets", lambda look: look.handles, 0.03),
    Row("threads", lambda look: look.threads, 0.03),
    Row("files in the temp folder", lambda look: look.temp_files, 0.03),
    Row("temp folder, MB", lambda look: look.temp, 1),
    Row("files in the output and model folders", lambda look: look.output_files),
    Row("objects of this pack", lambda look: look.objects, 0.1),
    Row("tensors", lambda look: look.tensors, 0.1),
    Row("hooks on modules", lambda look: look.hooks),
    Row("modules with a forward of their own", lambda look: look.patched),
    Row("models loaded", lambda look: look.models),
    Row("what of ComfyUI is not its own", lambda look: look.borrowed or "nothing"),
    Row("Python's threads", lambda look: look.names),
    Row("latent of the bf16 model, sha256", lambda look: look.latent),
)


@dataclass
class Played:
    """What became of the jobs, and how long they took by kind until they ended or, interrupted, from that on."""

    faults: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    stops: dict[str, list[float]] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        self.ended[what] = self.ended.get(what, 0) + 1


def play(server: ComfyServer, job: Job, moment: float | None, played: Played) -> None:
    """Run a job to its end, or interrupt it at `moment` of the time that such jobs take."""
    begun = time.monotonic()
    try:
        prompt_id = server.queue(job.nodes)
    except PromptRefused as refused:
        return _judge(job, "refused", str(refused), played)
    if moment is not None:
        time.sleep(moment * statistics.median(played.seconds.get(job.kind, [3.0])))
        server.interrupt()
        interrupted = time.monotonic()
    outcome = server.wait(prompt_id, _PATIENCE)
    if moment is not None and outcome.interrupted:
        played.stops.setdefault(job.kind, []).append(time.monotonic() - interrupted)
        return played.count("interrupted")
    if outcome.status == "success":
        played.seconds.setdefault(job.kind, []).append(time.monotonic() - begun)
    return _judge(job, outcome.status, outcome.error or "", played)


def _judge(job: Job, status: str, error: str, played: Played) -> None:
    played.count(status)
    good = status == "success" if job.fails is None else status != "success" and job.fails in error
    if not good:
        played.faults.append(f"{job.kind}: {status} {error}")
        print(f"FAULT {played.faults[-1]}", flush=True)


def tidy(server: ComfyServer, job: Job, played: Played) -> None:
    """Delete what the job saved; what working files it left is a fault."""
    for name in job.saved:
        for folder in (server.models / "diffusion_models", server.output / "tpec_calibration"):
            (folder / f"{name}.safetensors").unlink(missing_ok=True)
    for copy in (server.models / "diffusion_models").glob("copy*.safetensors"):
        copy.unlink()
    left = [path.name for folder in (server.temp, server.models, server.output) for path in folder.rglob("*")
            if ".partial" in path.name or path.name.startswith("passes-")]
    if left:
        played.faults.append(f"{job.kind}: left {', '.join(left)}")
        print(f"FAULT {played.faults[-1]}", flush=True)


def look(server: ComfyServer, jobs: int) -> Look:
    """Look at the server now, then freed."""
    busy = own_memory(server.pid) / 1e6
    # Freed before it samples, so that nothing of the latent comes from ComfyUI's cache. What sampling itself leaves
    # (33 MB of VRAM for cuBLAS on an H200) is there at every look.
    p.freed(server)
    digest = _latent(server)
    facts = p.freed(server)
    proc = Path(f"/proc/{server.pid}")
    temp = [path for path in server.temp.rglob("*") if path.is_file()]
    kept = [path for folder in (server.output, server.models) for path in folder.rglob("*") if path.is_file()]
    handles, threads = len(os.listdir(proc / "fd")), len(os.listdir(proc / "task"))
    return Look(jobs, busy, own_memory(server.pid) / 1e6, facts["given_out"] / 1e6, facts["allocated"] / 1e6,
                facts["vram"] / 1e6, handles, threads, len(temp),
                sum(path.stat().st_size for path in temp) / 1e6, len(kept),
                sum(facts["objects"].values()), facts["tensors"], facts["hooks"], facts["patched"], facts["models"],
                ", ".join(facts["borrowed"]), ", ".join(facts["threads"]), digest)


def _latent(server: ComfyServer) -> str:
    """Sample with the bf16 model: the first digits of the latent's sha256."""
    latent = server.succeed({**p.stock_loader(MODEL), **p.sampling(["model", 0], "look", steps=2)}, _PATIENCE)
    file = latent.outputs["keep"]["latents"][0]
    digest = hashlib.sha256(p.saved_latent(server, latent).numpy().tobytes()).hexdigest()[:12]
    (server.output / file["subfolder"] / file["filename"]).unlink()
    return digest


def trend(jobs: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Least squares: growth per job and its standard error."""
    if len(set(values)) < 2 or len(values) < 3:
        return 0.0, 0.0
    slope, intercept = statistics.linear_regression(jobs, values)
    rest = sum((value - intercept - slope * at) ** 2 for at, value in zip(jobs, values, strict=True))
    middle = statistics.fmean(jobs)
    return slope, (rest / (len(jobs) - 2) / sum((at - middle) ** 2 for at in jobs)) ** 0.5


def verdict(row: Row, looks: Sequence[Look]) -> tuple[str, bool]:
    """Words on whether it stays as it is, by the looks of the second half; whether it does."""
    values = [row.of(one) for one in looks]
    if row.least is None:
        good = len(set(values[1:])) < 2 if row.title.startswith("Python") else len(set(values)) == 1
        return "always the same" if good else f"NOT THE SAME: {sorted(set(map(str, values)))}", good
    second = [one for one in looks if one.jobs >= looks[-1].jobs / 2]
    slope, error = trend([one.jobs for one in second], [float(str(row.of(one))) for one in second])
    good = slope <= max(2 * error, row.least)
    return f"{slope:+.3f} +- {error:.3f} per job: {'flat' if good else 'GROWS'}", good


def report(looks: Sequence[Look], played: Played) -> bool:
    """Print the tables; whether all is well."""
    middle = min(looks, key=lambda one: abs(one.jobs - looks[-1].jobs / 2))
    shown, good = [], not played.faults
    for row in ROWS:
        words, flat = verdict(row, looks)
        good &= flat
        shown.append((row.title, *(_number(row.of(one)) for one in (looks[0], middle, looks[-1])), words))
    header = ("", "start", f"after {middle.jobs} jobs", f"after {looks[-1].jobs}", "second half")
    print("", markdown_table(header, shown), "", sep="\n")
    kinds = sorted(played.seconds.keys() | played.stops.keys())
    print(markdown_table(("job", "ended", "median, s", "interrupted", "until it stopped, s (median, longest)"), [
        (kind, len(ended), f"{statistics.median(ended):.1f}" if ended else "-", len(stops),
         f"{statistics.median(stops):.1f}, {max(stops):.1f}" if stops else "-")
        for kind in kinds for ended, stops in ((played.seconds.get(kind, []), played.stops.get(kind, [])),)]))
    print("", f"jobs: {', '.join(f'{count} {what}' for what, count in sorted(played.ended.items()))}",
          f"faults: {len(played.faults)}", *played.faults, sep="\n")
    return good


def _number(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def soak(server: ComfyServer, args: argparse.Namespace) -> tuple[list[Look], Played]:
    """Play all jobs, or as many as the time allows."""
    draw, jobs, played = random.Random(args.seed), Jobs(args.seed, server.models / "diffusion_models"), Played()
    for nodes in first_ones():
        server.succeed(nodes, _PATIENCE)
    order = ["quantize"] * args.jobs + ["calibrate"] * args.calibrations
    draw.shuffle(order)
    looks, begun = [look(server, 0)], time.monotonic()
    for number, kind in enumerate(order, 1):
        job = jobs.quantization() if kind == "quantize" else jobs.calibration()
        play(server, job, draw.random() * 1.1 if draw.random() < _INTERRUPTED else None, played)
        tidy(server, job, played)
        late = time.monotonic() - begun > args.seconds
        if number % args.every == 0 or number == len(order) or late:
            looks.append(look(server, number))
            print(f"{time.monotonic() - begun:.0f} s: {looks[-1]}", flush=True)
        if late:
            print(f"out of time after {number} of {len(order)} jobs", flush=True)
            break
    return looks, played


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="folder with models (default: a small model with random weights)")
    parser.add_argument("--gpu", action="store_true", help="let ComfyUI use its GPU (default: the CPU)")
    parser.add_argument("--jobs", type=int, default=100, help="quantizations (default 100)")
    parser.add_argument("--calibrations", type=int, default=20, help="calibrations (default 20)")
    parser.add_argument("--every", type=int, default=6, help="jobs between two looks (default 6)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop early after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the server's folders go (default: a temporary one)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    folder = args.shared and args.shared.resolve() / "models" / "tinyflux-shapes"
    print(f"{environment()}, seed {args.seed}", flush=True)
    with comfy(not args.gpu, args.folder) as server:
        furnish(server, folder and folder / TINYFLUX, folder and folder / p.CONDITIONING)
        looks, played = soak(server, args)
    sys.exit(0 if report(looks, played) else 1)


if __name__ == "__main__":
    main()
