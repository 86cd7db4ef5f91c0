"""The file being written: positional writes, a journal of what is durable, and an atomic end.

`NAME.partial` grows beside the output; `NAME.partial.journal*` list the finished tensors, each line written only after
the data it speaks of was synced. So a run that was killed can be resumed, and nothing under NAME is ever half a file.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from ..errors import TpecError
from .layout import Layout
from .lock import OutputLock
from .replace import disk_errors, exists, put_in_place

#: A journal syncs the data after so many bytes or seconds.
SYNC_BYTES = 256 << 20
_SYNC_SECONDS = 5.0
_EAGER_BYTES = 1 << 20


def partial_path(output: Path) -> Path:
    """The working file of a run that writes `output`."""
    return output.with_name(output.name + ".partial")


def output_lock(output: Path) -> OutputLock:
    """The lock that a run holds while it works on `output`; not yet acquired."""
    partial = partial_path(output)
    return OutputLock(partial.with_name(f"{partial.name}.lock"), output)


def journal_paths(output: Path) -> list[Path]:
    """The journals beside the working file, one for each lane that has written; none where there is no such folder.

    Raises OSError when they cannot be listed: one that is overlooked would speak of a later run's file.
    """
    partial = partial_path(output)
    try:
        names = os.listdir(partial.parent)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(partial.with_name(name) for name in names if name.startswith(partial.name + ".journal"))


def job_digest(layout: Layout, identity: dict[str, object], recipe: dict[str, object]) -> str:
    """One SHA-256 of all that decides the output's bytes: its header, `Source.identity()`, and the settings."""
    text = json.dumps([hashlib.sha256(layout.header).hexdigest(), identity, recipe], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def create(output: Path, layout: Layout, lock: OutputLock | None = None) -> None:
    """Make a fresh spool file of full size with header and constants, which `lock` watches from its beginning.

    Raises TpecError when the disk is too small; what was made is removed then, unless another file has its name.
    """
    with disk_errors(output):
        discard(output)
        free = shutil.disk_usage(output.parent).free
    if free < layout.nbytes:
        raise TpecError(f"The disk of {output.parent} has {free / 1e9:.2f} GB free and the result needs "
                        f"{layout.nbytes / 1e9:.2f} GB: make room or choose another folder.")
    try:
        with SpoolFile(output, layout, fresh=True) as spool:
            if lock is not None:
                with disk_errors(output):
                    lock.watch(spool.handle, partial_path(output))
            spool.allocate()
            for name, content in layout.constants.items():
                spool.write(name, content)
    except BaseException:
        with contextlib.suppress(OSError):
            if lock is None or lock.unchanged():
                discard(output)
        raise


def discard(output: Path) -> None:
    """Remove the spool file and its journals, if any. Raises OSError for what stays."""
    # The large one first: a journal without its file means nothing, and may stay where a folder cannot be listed.
    partial_path(output).unlink(missing_ok=True)
    for path in journal_paths(output):
        path.unlink(missing_ok=True)


def finish(output: Path, overwrite: bool = True, lock: OutputLock | None = None) -> None:
    """Make the spool file durable and give it the output's name in one step. Raises TpecError; the file stays then.

    So it does for a file that is not the one that `lock` watches.
    """
    with disk_errors(output):
        put_in_place(partial_path(output), output, overwrite, None if lock is None else lock.confirm)
    with contextlib.suppress(OSError):  # the result is there; a journal without its file means nothing
        for path in journal_paths(output):
            path.unlink(missing_ok=True)


class SpoolFile:
    """One writer's handle to the spool file; several may write different tensors at once."""

    def __init__(self, output: Path, layout: Layout, fresh: bool = False) -> None:
        """`fresh` makes the file, which must not be there yet; otherwise it must."""
        self._output = output
        self._layout = layout
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if fresh else 0) | getattr(os, "O_BINARY", 0)
        with disk_errors(output):
            self._file = os.fdopen(os.open(partial_path(output), flags, 0o644), "r+b", buffering=0)

    def __enter__(self) -> "SpoolFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def handle(self) -> int:
        """The open file, as the system numbers it."""
        return self._file.fileno()

    def close(self) -> None:
        """Let go of the file. Raises TpecError when the system could not keep what was written."""
        with disk_errors(self._output):
            self._file.close()

    def allocate(self) -> None:
        """Give a fresh file its full size and its header. Raises TpecError for what the disk refuses."""
        with disk_errors(self._output):
            os.ftruncate(self._file.fileno(), self._layout.nbytes)  # unlike the file's own, again after a signal
            self._put(0, self._layout.header)

    def write(self, name: str, data: bytes | memoryview, offset: int = 0) -> None:
        """Write bytes of tensor `name` from `offset` (in bytes) within it.

        Raises TpecError for a place outside the tensor and for what the disk refuses.
        """
        entry = self._layout.entries[name]
        if offset < 0 or offset + memoryview(data).nbytes > entry.nbytes:
            raise TpecError(f"Tensor '{name}' would be written outside its place in {self._output.name}: this is a "
                            "fault of the program, report it please.")
        with disk_errors(self._output):
            self._put(entry.start + offset, data)

    def sync(self) -> None:
        """Wait until the disk has all that was written. Raises TpecError when it refuses."""
        with disk_errors(self._output):
            os.fsync(self._file.fileno())
        self._not_needed(0, 0)

    def _put(self, at: int, data: bytes | memoryview) -> None:
        self._file.seek(at)
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += self._file.write(view[done:])
        if len(view) >= _EAGER_BYTES:
            # Linux begins to write these pages to the disk at once, so that the next sync finds little left to do.
            self._not_needed(at, len(view))

    def _not_needed(self, at: int, nbytes: int) -> None:
        """Tell the system that these bytes, or with 0 all from there on, will not be read again."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._file.fileno(), at, nbytes, os.POSIX_FADV_DONTNEED)


class Journal:
    """What one writer has finished. `record` notes a tensor; the line reaches the disk after the tensor's bytes did.

    It goes on in the file that an earlier run left, behind the last whole line: whatever were written after a cut line
    would be unreadable together with it.
    """

    def __init__(self, output: Path, digest: str, lane: int, spool: SpoolFile, sync_bytes: int = SYNC_BYTES) -> None:
        """Open the journal of `lane`; `digest` (`job_digest`) says what job it is for.

        Finished tensors are synced and noted when they make `sync_bytes` bytes. Raises TpecError.
        """
        self._spool = spool
        self._sync_bytes = sync_bytes
        self._output = output
        self._pending: list[str] = []
        self._bytes = 0
        self._synced = time.monotonic()
        path = partial_path(output)
        with disk_errors(output):
            path = path.with_name(f"{path.name}.journal{lane}")
            self._file = open(path, "a", encoding="ascii")
            os.ftruncate(self._file.fileno(), _whole_lines(path)[1])
        self._pending.append(json.dumps({"job": digest}))

    def record(self, name: str, nbytes: int, facts: dict[str, object] | None = None) -> None:
        """Note that tensor `name`, of `nbytes` bytes in the output, is written; `facts` are for the report.

        Raises TpecError when the disk refuses.
        """
        self._pending.append(json.dumps({"done": name, "facts": facts}))
        self._bytes += nbytes
        if self._bytes >= self._sync_bytes or time.monotonic() - self._synced > _SYNC_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sync the data, then the lines that say it is there. Raises TpecError when the disk refuses."""
        self._spool.sync()
        with disk_errors(self._output):
            self._file.write("".join(line + "\n" for line in self._pending))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._pending.clear()
        self._bytes = 0
        self._synced = time.monotonic()

    def close(self) -> None:
        """Close the journal; what was recorded after the last `flush` does not count."""
        # Lines that a full disk refused are tried once more here; `flush` has raised for them already.
        with contextlib.suppress(OSError):
            self._file.close()


def finished(output: Path, layout: Layout, digest: str,
             lock: OutputLock | None = None) -> dict[str, dict[str, object] | None] | None:
    """Finished tensors of an earlier run and their facts by name, None when there is no run to go on with.

    layout, digest: of the job to be done. `lock` watches the file that was looked at. Raises TpecError when what is
    there belongs to another job or cannot be read.
    """
    partial = partial_path(output)
    with disk_errors(partial, "read"):
        return _finished(output, partial, layout, digest, lock)


def _finished(output: Path, partial: Path, layout: Layout, digest: str,
              lock: OutputLock | None) -> dict[str, dict[str, object] | None] | None:
    journals = journal_paths(output)
    if not exists(partial) or not journals:
        return None
    done: dict[str, dict[str, object] | None] = {}
    lines = [line for path in journals for line in _whole_lines(path)[0]]
    if not lines:
        # Killed before anything was synced: not even the constants can be relied on.
        return None
    for line in lines:
        if "job" in line and line["job"] != digest:
            raise TpecError(f"{partial.name} cannot be resumed: the source file or a setting changed since it was "
                            "begun; delete it, or run without --resume to start over.")
        if "done" in line:
            done[line["done"]] = line["facts"]
    with open(partial, "rb") as file:
        if file.read(len(layout.header)) != layout.header or os.fstat(file.fileno()).st_size != layout.nbytes:
            raise TpecError(f"{partial.name} cannot be resumed: it is not what its journal says; run without --resume "
                            "to start over.")
        if lock is not None:
            lock.watch(file.fileno(), partial)
    return done


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The journal's lines up to one that a crash has cut or garbled, and the number of bytes they take."""
    lines, nbytes = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            fields = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            break
        if not _is_line(fields):
            break
        lines.append(fields)
        nbytes += len(line)
    return lines, nbytes


def _is_line(fields: object) -> bool:
    """Whether this is what `Journal` writes: a job, or a finished tensor with its facts."""
    if not isinstance(fields, dict):
        return False
    if "done" in fields:
        return isinstance(fields["done"], str) and isinstance(fields.get("facts", 0), dict | None)
    return "job" in fields
