"""Killed at random moments and resumed: the same bytes? And what a replaced source and a full disk lead to.

    python -m benchmarks.crash --folder /data/scratch
    python -m benchmarks.crash --folder /data/scratch --size 2 --hidden 3072 --method nearest --kills 40 --seed 7

The real command runs on a synthetic model, unchanged, as a process of its own: once uninterrupted, then (a) as many
fresh jobs as --kills, each killed (SIGKILL) once and resumed, one at a moment drawn from every n-th part of the
uninterrupted run's time, importing and the final renaming included, and one more at the instant the output's name
appears; then (b) one job killed so many times in a row. Exit code 1 when any file differs or anything else is not as
promised. What a killed run had finished counts once it is durable: every 256 MB or 5 s, so the model should take
longer than that. Disk full needs a small tmpfs (Linux, root), and is left out with a line that says so elsewhere.
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path

from tpec.files.partial import partial_path

from . import make_model
from .common import environment, markdown_table, sha256
from .faults import full_disk, replaced_source
from .jobs import Checks, Ended, Job
from .memory import model_file

#: A job killed many times needs this long after its start for its first durable tensors, and a little more.
_SEGMENT = 8.0

HEADER = ("kill", "at, s", "durable in the journal", "under the output's name", "resumed run, s", "same sha256")


def after_kill(job: Job, checks: Checks, title: str, ended: Ended) -> str:
    """What lies under the output's name: nothing, or the whole file when the run had got that far."""
    if not job.output.exists():
        checks.that(ended.code < 0, f"{title}: ended with code {ended.code}: {ended.said}")
        return "nothing"
    checks.same(job.output, f"{title}, before resuming")
    return "the whole file"


def single(job: Job, checks: Checks, title: str, **kill: object) -> tuple[list[str], int]:
    """A fresh job, killed once and resumed; its row, and the durable tensors."""
    job.clear()
    ended = job.run(**kill)
    there = after_kill(job, checks, title, ended)
    durable = job.durable()
    seconds = "-"
    if not job.output.exists():
        resumed = job.run()
        checks.that(resumed.code == 0, f"{title}: the resumed run failed: {resumed.said}")
        seconds = f"{resumed.seconds:.1f}"
        checks.that(job.lying() == job.output.name, f"{title}: left behind: {job.lying()}")
    row = [title, f"{ended.seconds:.2f}", durable.text(), there, seconds, checks.same(job.output, title)]
    return row, durable.tensors


def separate(job: Job, checks: Checks, kills: int, whole: float, chance: random.Random) -> str:
    """Part (a)."""
    moments = [whole * (at + chance.random()) / kills for at in range(kills)]
    rows, counts = [], []
    for at, moment in enumerate(moments):
        row, tensors = single(job, checks, str(at + 1), kill_after=moment)
        rows.append(row)
        counts.append(tensors)
    row, _ = single(job, checks, "at the rename", kill_when=job.output.exists)
    print(f"\n(a) {kills} jobs, each killed once, and one killed when the name appears\n")
    print(markdown_table(HEADER, [*rows, row]), flush=True)
    job.clear()
    same = sum(line[-1] == "yes" for line in (*rows, row))
    return (f"(a) {same} of {len(rows) + 1} identical; {sum(count > 0 for count in counts)} of {kills} resumed with "
            f"durable tensors, up to {max(counts, default=0)}")


def in_a_row(job: Job, checks: Checks, kills: int, start: float, chance: random.Random) -> str:
    """Part (b). A job that is finished before all kills are used up is checked, and begun again."""
    rows, jobs, spent = [], 1, 0.0
    job.clear()
    for at in range(kills):
        title = str(at + 1)
        ended = job.run(kill_after=chance.random() * (start + _SEGMENT))
        spent += ended.seconds
        there, durable = after_kill(job, checks, title, ended), job.durable()
        same = checks.same(job.output, title) if job.output.exists() else ""
        rows.append([title, f"{ended.seconds:.2f}", durable.text(), there, "", same])
        if same:
            job.clear()
            jobs += 1
    ended = job.run()
    checks.that(ended.code == 0, f"(b): the last run failed: {ended.said}")
    same = checks.same(job.output, "(b)")
    rows.append(["none", "", "", "the whole file", f"{ended.seconds:.1f}", same])
    print(f"\n(b) one job killed {kills} times in a row, {spent:.0f} s of runs before the last\n")
    print(markdown_table(HEADER, rows), flush=True)
    job.clear()
    again = f" (it was finished {jobs - 1} times before, and begun again)" if jobs > 1 else ""
    return f"(b) one job, {kills} kills in a row{again}: identical {same}"


def uninterrupted(job: Job) -> tuple[Ended, float]:
    """The run that all others are held against, and the seconds until its working file appeared."""
    job.clear()
    begun, appeared = time.perf_counter(), []

    def look() -> None:
        if not appeared and partial_path(job.output).exists():
            appeared.append(time.perf_counter() - begun)

    ended = job.run(meanwhile=look)
    if ended.code:
        raise SystemExit(f"The uninterrupted run failed with code {ended.code}: {ended.said}")
    return ended, appeared[0] if appeared else ended.seconds


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where model and outputs go; needs 3 x the size")
    parser.add_argument("--size", type=float, default=0.2, help="model size, GB (default 0.2)")
    parser.add_argument("--hidden", type=int, default=1024, help="model width (default 1024)")
    parser.add_argument("--layout", choices=make_model.LAYOUTS, default="chroma", help="model layout (default chroma)")
    parser.add_argument("--method", default="tpec", help="method (default tpec)")
    parser.add_argument("--device", default="cpu", help="device (default cpu)")
    parser.add_argument("--kills", type=int, default=20, help="kills in each of both parts (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default 0)")
    parser.add_argument("extra", nargs="*", help="further options of `tpec quantize`, after --")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    source = model_file(args.folder, args.size, args.layout, args.hidden)
    options = ("--method", args.method, "--device", args.device, *args.extra)
    job = Job(source, args.folder / "crash.out.safetensors", options)
    whole, start = uninterrupted(job)
    checks = Checks(sha256(job.output))
    nbytes = job.output.stat().st_size
    print(f"{environment()}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}\n")
    print(f"{source.name}: {source.stat().st_size / 1e9:.2f} GB in, {nbytes / 1e9:.2f} GB out, --method {args.method}, "
          f"seed {args.seed}\nuninterrupted: {whole.seconds:.1f} s, of which {start:.1f} s until the working file is "
          f"there, sha256 {checks.digest}", flush=True)
    chance = random.Random(args.seed)
    summary = [separate(job, checks, args.kills, whole.seconds, chance),
               in_a_row(job, checks, args.kills, start, chance),
               replaced_source(job, checks), *full_disk(job, checks, nbytes)]
    print("\n" + "\n".join(summary))
    print(f"\n{len(checks.failed)} things not as promised" if checks.failed else "\nall as promised", flush=True)
    if checks.failed:
        print("\n".join(checks.failed))
        sys.exit(1)


if __name__ == "__main__":
    main()
