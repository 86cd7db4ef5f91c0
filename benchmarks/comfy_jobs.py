"""Prompts given to a real ComfyUI one after another, each with a time limit, and what they took: for `in_comfy` and its
siblings."""

import argparse
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from comfy_server import ComfyServer, Outcome, PromptRefused

from .common import BLOCK, environment, markdown_table
from .memory import model_file
from .server import own_memory

#: What is left of a card's memory where it is sold as so many GB, as programs see it.
_OF_A_CARD = 0.975 * 2**30
#: Seconds that an interrupted prompt has to end, and between two looks at the server.
_LAST_SECONDS, _INTERVAL = 90, 0.05
_CARD_VARIABLE = "TPEC_TEST_CARD_BYTES"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
Nodes = dict[str, dict]


@dataclass(frozen=True)
class Job:
    """One prompt: its node `show`, where there is one, says something worth keeping.

    It is left out when the job `needs` did not end well; afterwards the folders `clean` of the pack's temp folder, and
    saved files whose names match `unlink`, are emptied, so that the disk need not hold all that ever was made.
    """

    name: str
    title: str
    nodes: Nodes
    limit: float = 240
    needs: str = ""
    clean: tuple[str, ...] = ()
    unlink: str = ""


@dataclass
class Row:
    """What became of a job. Bytes: `memory` the server's own at most, `vram` taken at most beside what was before (None
    without a GPU), `disk` of results, calibrations and saved files at most, `left` afterwards."""

    job: str
    title: str
    state: str = "done"
    seconds: float = 0.0
    memory: int = 0
    vram: int | None = None
    disk: int = 0
    left: int = 0
    said: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


class Watch:
    """Context manager: the peaks of a Row while something runs in the server."""

    def __init__(self, server: ComfyServer, row: Row, vram_before: int) -> None:
        self._server, self._row, self._before = server, row, vram_before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._row.seconds = time.monotonic() - self._begun
        self._stop.set()
        self._thread.join()
        self._row.left = disk_use(self._server.base)
        self._row.disk = max(self._row.disk, self._row.left)

    def _watch(self) -> None:
        row, looks = self._row, 0
        while not self._stop.wait(_INTERVAL):
            row.memory = max(row.memory, own_memory(self._server.pid))
            if torch.cuda.is_available():
                row.vram = max(row.vram or 0, vram_taken() - self._before)
            if looks % 10 == 0:
                row.disk = max(row.disk, disk_use(self._server.base))
            looks += 1


def vram_taken() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free


def disk_use(base: Path) -> int:
    """Bytes on disk of what the server made: files with several names count once, links to others do not."""
    found: dict[int, int] = {}
    for folder in ("temp", "output", "models"):
        for path in (base / folder).rglob("*"):
            try:
                state = path.lstat()
            except OSError:  # gone meanwhile
                continue
            if path.is_file() and not path.is_symlink():
                found[state.st_ino] = state.st_blocks * 512
    return sum(found.values())


def card_bytes(gigabytes: float) -> int:
    """What programs find on a card that is sold as having so many GB."""
    return int(gigabytes * _OF_A_CARD)


@contextmanager
def only(nbytes: int) -> Iterator[int]:
    """Within, all VRAM but so many bytes is held, and a server started here believes in such a card; 0: all of it.

    Gives what is taken then.
    """
    if not nbytes or not torch.cuda.is_available():
        yield vram_taken() if torch.cuda.is_available() else 0
        return
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    held = torch.empty(max(0, torch.cuda.mem_get_info()[0] - nbytes), dtype=torch.uint8, device="cuda")
    os.environ[_CARD_VARIABLE] = str(nbytes)
    try:
        yield vram_taken()
    finally:
        del os.environ[_CARD_VARIABLE], held


class Bench:
    """Runs jobs, prints each row as soon as it is there, and keeps all in a JSON file."""

    def __init__(self, server: ComfyServer, vram_before: int, facts: dict[str, object], output: Path | None,
                 within: float = 0) -> None:
        self._server, self._before, self._facts, self._output = server, vram_before, facts, output
        self._end = time.monotonic() + within if within else float("inf")
        self.rows: list[Row] = []

    def run(self, job: Job) -> Outcome | None:
        """The job's outcome; None when it was left out, failed, or was interrupted at its limit."""
        row = Row(job.name, job.title)
        self.rows.append(row)
        outcome = None
        limit = min(job.limit, self._end - time.monotonic())
        if job.needs and not any(other.job == job.needs and other.state == "done" for other in self.rows):
            row.state = f"left out: needs '{job.needs}'"
        elif limit < 5:
            row.state = "left out: no time"
        else:
            outcome = self._measured(job, row, limit)
        self.clean(job.clean, job.unlink)
        self._print(row)
        return outcome

    def _measured(self, job: Job, row: Row, limit: float) -> Outcome | None:
        start = len(self._server.log())
        try:
            with Watch(self._server, row, self._before):
                outcome = self._ended(self._server.queue(job.nodes), limit)
                if outcome is None:
                    row.state = f"over {limit:.0f} s"
                    self._server.interrupt()
        except PromptRefused as error:
            row.state = f"refused: {error}"
            return None
        log = self._server.log()[start:]
        row.log = [line for line in re.split(r"[\r\n]+", _COLOUR.sub("", log)) if "TPEC:" in line or "Error" in line]
        if outcome is None:
            row.said = [f"{len(re.findall(r'100%.*$', log, re.MULTILINE))} progress bars were full"]
            if self._ended_last() is None:
                raise SystemExit(f"The server did not stop:\n{self._server.log()[-3000:]}")
            return None
        if outcome.status != "success":
            row.state, row.said = "failed", [f"{outcome.failed_node}: {outcome.error}"]
            return None
        if "show" in job.nodes:
            row.said = outcome.text("show").split("\n\n", 1)[0].splitlines()
        return outcome

    def _ended(self, prompt_id: str, seconds: float) -> Outcome | None:
        """The outcome, None when there is none after so many seconds; a busy server may answer late."""
        self._last, end = prompt_id, time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                return self._server.wait(prompt_id, max(0.2, min(5.0, end - time.monotonic())))
            except (OSError, TimeoutError):
                if not own_memory(self._server.pid):
                    raise SystemExit(f"The server ended:\n{self._server.log()[-3000:]}") from None
        return None

    def _ended_last(self) -> Outcome | None:
        return self._ended(self._last, _LAST_SECONDS)

    def clean(self, folders: Iterable[str], saved: str = "") -> None:
        """Remove the files in folders of the pack's temp folder, and saved models whose names match."""
        for path in [*(path for name in folders for path in (self._server.temp / "tpec" / name).glob("*")),
                     *(self._server.models.rglob(saved) if saved else ())]:
            if path.is_file():
                path.unlink()

    def _print(self, row: Row) -> None:
        print(" | ".join(cells(row)[:-1]), *row.said[:8], *row.log, sep="\n    ", flush=True)
        if self._output is not None:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            self._output.write_text(json.dumps(self._facts | {"rows": [asdict(row) for row in self.rows]}, indent=1))


HEADER = ("step", "seconds", "VRAM, GB", "memory, GB", "disk, GB", "disk after, GB", "it said")


def cells(row: Row) -> list[str]:
    def size(nbytes: int | None) -> str:
        return "-" if not nbytes else f"{nbytes / 1e9:.1f}"

    seconds = f"{row.seconds:.1f}" if row.state == "done" else f"{row.state} ({row.seconds:.1f} s)"
    return [row.title, seconds, size(row.vram), size(row.memory), size(row.disk), size(row.left), sentence(row)]


def sentence(row: Row) -> str:
    """What a user would want to know of what the node said: that something did not go as it should, or the sum; of a
    job that was interrupted, how long it had said it would take."""
    if row.state.startswith("over"):
        said = [line.partition("TPEC: ")[2] for line in row.log if "calibrating first" in line]
        return ". ".join([*said, *row.said])
    chosen = [line for line in row.said if re.search("calibrate|memory|CPU|VRAM", line)]
    return (chosen or row.said or [""])[0]


def table(rows: Iterable[Row]) -> str:
    return markdown_table(HEADER, map(cells, rows))


def read_rows(path: Path) -> tuple[dict[str, object], list[Row]]:
    """What a program's --output holds: the facts beside the rows, and those."""
    facts = json.loads(path.read_text("utf-8"))
    return facts, [Row(**row) for row in facts.pop("rows")]


def merged(paths: Sequence[Path]) -> str:
    """One table of several programs' rows, step by step, with the card of each; those that were run later win."""
    found: dict[str, dict[str, Row]] = {}
    for path in paths:
        facts, rows = read_rows(path)
        for row in rows:
            steps = found.setdefault(row.title, {})
            if row.state == "done" or str(facts["card"]) not in steps:
                steps[str(facts["card"])] = row
    lines = [[title, card, *cells(row)[1:]] for title, cards in found.items() for card, row in cards.items()]
    return markdown_table((HEADER[0], "card", *HEADER[1:]), lines)


def warm(path: Path) -> None:
    """Read a file once, so that the system has it in memory as far as there is room."""
    with open(path, "rb", buffering=0) as file:
        while file.read(BLOCK):
            pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--folder", type=Path, default=Path("benchmark-scratch"), help="where models and results go")
    add("--output", type=Path, help="a JSON file for the rows, written after each of them")
    add("--cpu", action="store_true", help="run ComfyUI on the CPU, to try this program out")
    add("--within", type=float, default=0, help="seconds in all: jobs that do not begin in time are left out")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, help="a model in Flux layout that is there; else one of --size GB is written")
    add("--size", type=float, default=10, help="size of the model that is written, GB (default 10)")
    add("--hidden", type=int, default=3072, help="its width")


def flux_model(args: argparse.Namespace) -> Path:
    """The model that the arguments name, written where they name none, and in the page cache."""
    args.folder.mkdir(parents=True, exist_ok=True)
    model = args.model or model_file(args.folder, args.size, "flux", args.hidden)
    if not model.is_file():
        sys.exit(f"There is no {model}: write it with python -m benchmarks.make_model.")
    warm(model)
    return model


def facts(card: str, model: Path) -> dict[str, object]:
    """What stands beside the rows: the machine, the card that is left, the model's size."""
    return {"environment": environment(), "card": card, "model": model.name, "model_bytes": model.stat().st_size}


def run_all(bench: Bench, jobs: Iterable[Job], then: Callable[[Job, Outcome], None] | None = None) -> None:
    for job in jobs:
        outcome = bench.run(job)
        if outcome is not None and then is not None:
            then(job, outcome)
