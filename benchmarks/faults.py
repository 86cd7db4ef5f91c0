"""The other faults of a run, for `benchmarks.crash`: a source replaced before the resumed run, a disk that is full."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tpec.files.header import read_header
from tpec.files.partial import journal_paths, partial_path

from . import make_model
from .common import markdown_table, sha256
from .jobs import Checks, Ended, Job

_MIB = 1 << 20
FAULTS = ("fault", "exit code", "stderr", "lies in the output's folder")


def one_sentence(checks: Checks, title: str, ended: Ended) -> None:
    """Exit code 1 and one line that says what is wrong."""
    checks.that(ended.code == 1, f"{title}: exit code {ended.code}")
    checks.that(ended.said.startswith("tpec: ") and "\n" not in ended.said, f"{title}: not one line: {ended.said}")


def replaced_source(job: Job, checks: Checks) -> str:
    """Kill a run that has durable tensors, write another model over its source, resume; then put the source back."""
    job.clear()
    job.run(kill_when=lambda: any(path.stat().st_size for path in journal_paths(job.output)))
    durable = job.durable()
    checks.that(durable.tensors > 0, "replaced source: nothing was durable")
    kept = job.source.with_suffix(".kept")
    before = sha256(partial_path(job.output))
    os.replace(job.source, kept)
    try:
        shapes = {name: info.shape for name, info in read_header(kept)[0].items()}
        make_model.write_model(job.source, shapes, seed=1)
        refused = job.run()
    finally:
        os.replace(kept, job.source)
    one_sentence(checks, "replaced source", refused)
    checks.that(sha256(partial_path(job.output)) == before, "replaced source: the working file was touched")
    checks.that(not job.output.exists(), "replaced source: a file lies under the output's name")
    rows = [["source replaced by another model of the same size", refused.code, refused.said, job.lying()]]
    resumed = job.run()
    checks.that(resumed.code == 0, f"source put back: {resumed.said}")
    same = checks.same(job.output, "source put back")
    rows.append([f"the old source put back ({durable.text()} durable)", resumed.code, resumed.said or "nothing",
                 job.lying()])
    job.clear()
    print("\nsource replaced between the kill and --resume\n")
    print(markdown_table(FAULTS, rows), flush=True)
    return f"replaced source refused with code {refused.code}; put back and resumed: identical {same}"


@contextlib.contextmanager
def small_disk(folder: Path, nbytes: int) -> Iterator[Path | None]:
    """A tmpfs of that size, or None where it cannot be mounted."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:  # no such command
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def fill(folder: Path) -> None:
    """Let another file take all the room that is left."""
    with open(folder / "filler", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(_MIB))


def full_disk(job: Job, checks: Checks, nbytes: int) -> list[str]:
    """A disk too small from the start, one that fills during the run without and with --resume, a file size limit."""
    rows, summary = [], []
    with small_disk(job.output.parent / "crash.disk", nbytes // 2) as disk:
        if disk is not None:
            rows.append(_too_small(replace(job, output=disk / job.output.name), checks, disk))
    with small_disk(job.output.parent / "crash.disk", nbytes + 64 * _MIB) as disk:
        if disk is not None:
            there = replace(job, output=disk / job.output.name)
            rows += [_filling(there, checks, disk, resume) for resume in (False, True)]
            (disk / "filler").unlink(missing_ok=True)
            resumed = there.run()
            checks.that(resumed.code == 0, f"room made: {resumed.said}")
            same = checks.same(there.output, "room made")
            rows.append(["room made, --resume", resumed.code, resumed.said or "nothing", _names(disk)])
            summary.append("disk full: one sentence, nothing under the output's name; room made and resumed: "
                           f"identical {same}")
        else:
            summary.append("disk full: skipped, a tmpfs cannot be mounted here (needs Linux and root)")
    row = _file_size_limit(job, checks, nbytes // 2)
    rows += [row] if row else []
    print("\ndisk full\n")
    print(markdown_table(FAULTS, rows), flush=True)
    return summary


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"


def _too_small(job: Job, checks: Checks, disk: Path) -> list[object]:
    ended = job.run(resume=False)
    one_sentence(checks, "small disk", ended)
    checks.that(_names(disk) == "nothing", f"small disk: left behind: {_names(disk)}")
    return ["half of the room needed", ended.code, ended.said, _names(disk)]


def _filling(job: Job, checks: Checks, disk: Path, resume: bool) -> list[object]:
    """Another file takes the room once the run is under way; with `resume` once it has something to go on from."""
    title = "filled by another file during the run" + (", --resume" if resume else "")

    def meanwhile() -> None:
        begun = [path for path in journal_paths(job.output) if path.stat().st_size or not resume]
        if begun and not (disk / "filler").exists():
            fill(disk)

    ended = job.run(resume=resume, meanwhile=meanwhile)
    one_sentence(checks, title, ended)
    kept = {f"{job.output.name}.partial", f"{job.output.name}.partial.journal0"} if resume else set()
    checks.that(set(_names(disk).split(", ")) == kept | {"filler"}, f"{title}: left behind: {_names(disk)}")
    row = [title, ended.code, ended.said, _names(disk)]
    if not resume:
        (disk / "filler").unlink(missing_ok=True)
    return row


def _file_size_limit(job: Job, checks: Checks, nbytes: int) -> list[object] | None:
    """The system allows no file of that size (ulimit -f)."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    job.clear()
    ended = job.run(resume=False, limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes)))
    one_sentence(checks, "file size limit", ended)
    row = ["files limited to half the size (ulimit -f)", ended.code, ended.said, job.lying()]
    checks.that(job.lying() == "nothing", f"file size limit: left behind: {job.lying()}")
    return row
