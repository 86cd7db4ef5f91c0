"""Give a finished file its place under the user's name, without ever leaving half a file there."""

import os
import shutil
from pathlib import Path

from ..errors import TpecError
from .replace import NameTaken, disk_errors, exists, refuse_dead_link, replacing

IF_EXISTS = ("error", "number", "overwrite")


def publish(source: Path, target: Path, if_exists: str = "error") -> Path:
    """Hard-link or copy `source` to `target` atomically and return the path used; `source` stays.

    `if_exists`: "error" refuses, "number" appends _2, _3 ..., "overwrite" replaces. Folders above `target` are made.
    Raises TpecError when the name is taken, or for what the disk refuses.
    """
    if if_exists not in IF_EXISTS:
        raise TpecError(f"if_exists is '{if_exists}': it must be one of {', '.join(IF_EXISTS)}.")
    with disk_errors(target):
        if if_exists == "number":
            return _publish_numbered(source, target)
        refuse_dead_link(target)
        if if_exists == "overwrite" and exists(target, "written") and target.samefile(source):
            return target
        try:
            return _publish(source, target, if_exists == "overwrite")
        except NameTaken:
            raise _taken(target) from None


def _taken(target: Path) -> TpecError:
    return TpecError(f"{target.name} exists already in {target.parent.name}: choose another name, or set if_exists "
                     "to number or overwrite.")


def _publish_numbered(source: Path, target: Path) -> Path:
    """The first free name among NAME, NAME_2, NAME_3 ...; one that somebody else takes meanwhile is passed over."""
    number, name = 1, target
    while True:
        try:
            return _publish(source, name, overwrite=False)
        except NameTaken:
            number += 1
            name = target.with_name(f"{target.stem}_{number}{target.suffix}")


def _publish(source: Path, target: Path, overwrite: bool) -> Path:
    if not overwrite and os.path.lexists(target):  # before a copy of many gigabytes; `replacing` has the last word
        raise NameTaken(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target, overwrite) as part:
        _link_or_copy(source, part)
    return target


def _link_or_copy(source: Path, part: Path) -> None:
    try:
        os.link(source, part)
    except OSError:  # another drive, or a file system without hard links
        shutil.copyfile(source, part)
