"""Give a finished file its place under the user's name, without ever leaving half a file there."""

import contextlib
import os
import shutil
from pathlib import Path

from .errors import TpecError
from .spool import disk_fault, sync_folder

IF_EXISTS = ("error", "number", "overwrite")


def publish(source: Path, target: Path, if_exists: str = "error") -> Path:
    """Hard-link or copy `source` to `target` atomically and return the path used; `source` stays.

    `if_exists`: "error" refuses, "number" appends _2, _3 ..., "overwrite" replaces. Raises TpecError.
    """
    if if_exists not in IF_EXISTS:
        raise TpecError(f"if_exists is '{if_exists}': it must be one of {', '.join(IF_EXISTS)}.")
    try:
        return _publish(source, _free_name(target) if if_exists == "number" else target, if_exists)
    except OSError as error:
        raise TpecError(disk_fault(error, target)) from None


def _publish(source: Path, target: Path, if_exists: str) -> Path:
    if if_exists == "error" and target.exists():
        raise TpecError(f"{target.name} exists already in {target.parent.name}: choose another name, or set if_exists "
                        "to number or overwrite.")
    if target.exists() and target.samefile(source):
        return target
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(source, part)
        if if_exists == "error" and target.exists():
            raise TpecError(f"{target.name} appeared in {target.parent.name} meanwhile: choose another name.")
        os.replace(part, target)
        sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):  # gone after the replacement; never there for an impossible name
            part.unlink()
    return target


def _link_or_copy(source: Path, part: Path) -> None:
    try:
        os.link(source, part)
    except OSError:  # another drive, or a file system without hard links
        shutil.copyfile(source, part)
        with open(part, "r+b") as file:
            os.fsync(file.fileno())


def _free_name(target: Path) -> Path:
    number, name = 2, target
    while name.exists():
        name = target.with_name(f"{target.stem}_{number}{target.suffix}")
        number += 1
    return name
