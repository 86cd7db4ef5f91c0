"""From a name that anybody may have sent to a path that stays in its folder on every system; nothing of ComfyUI.

Windows' rules: https://learn.microsoft.com/windows/win32/fileio/naming-a-file. They hold everywhere, so that a file has
one name on all of a user's machines.
"""

import os
import re
import unicodedata
from pathlib import Path

from ...tpec.errors import TpecError
from ...tpec.files.naming import is_device
from ...tpec.files.replace import is_folder

#: Bytes (UTF-8) of one part, which leaves room below the 255 of most disks for what is added; and of all together.
MOST_BYTES = 200
MOST_BYTES_ALTOGETHER = 800

#: A colon is a drive's or that of an alternate data stream.
_FORBIDDEN = re.compile(r'[<>:"|?*]')
#: Control characters, halves of characters, line and paragraph separators.
_UNFIT = frozenset({"Cc", "Cs", "Zl", "Zp"})
#: They make a name look like another one.
_TURNS_TEXT = re.compile("[\u202a-\u202e\u2066-\u2069]")


def safe_parts(filename: str) -> list[str]:
    """The parts of a relative name with either slash. Raises TpecError unless it is one below its folder everywhere."""
    name = filename.strip().replace("\\", "/")
    if not name:
        raise TpecError("The file name is empty: enter one.")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise TpecError(f"The file name '{filename}' is an absolute path: enter a name without drive or leading slash.")
    parts = name.split("/")
    for part in parts:
        why = _fault(part)
        if why:
            raise TpecError(f"The file name '{filename}' {why}.")
    if len(name.encode()) > MOST_BYTES_ALTOGETHER:
        raise TpecError(f"The file name with its folders is longer than {MOST_BYTES_ALTOGETHER} bytes: shorten it.")
    return parts


def _fault(part: str) -> str:
    """What is wrong with one part of a name and what to do, or ''."""
    if part == "..":
        return "contains '..': enter a name inside the folder"
    if not part or part == ".":
        return "has an empty part: check its slashes"
    if _FORBIDDEN.search(part) or _TURNS_TEXT.search(part) or _UNFIT & set(map(unicodedata.category, part)):
        return ("holds a character that not every system allows (one of < > : \" | ? * or a control character): "
                "leave it out")
    if is_device(part) or part[-1] in ". ":
        return f"is not possible on Windows ('{part}'): choose another"
    if len(part.encode()) > MOST_BYTES:
        return f"is longer than {MOST_BYTES} bytes: shorten it"
    return ""


def save_target(root: Path, filename: str, suffix: str = ".safetensors") -> Path:
    """A checked path below `root`. `filename` may name subfolders with either slash; the suffix may be left out.

    Subfolders that somebody linked to another place are followed, as ComfyUI follows them when it lists files.
    """
    parts = safe_parts(filename)
    if not parts[-1].lower().endswith(suffix):
        parts[-1] += suffix
    target = root.joinpath(*parts)
    if not any(is_within(place, target) for place in (root, *_linked_folders(root, parts[:-1]))):
        raise TpecError(f"The file name '{filename}' leads out of {root}: choose a name inside it.")
    return target


def _linked_folders(root: Path, parts: list[str]) -> list[Path]:
    """Those folders on the way down from `root` that are links to folders elsewhere."""
    folders = [root.joinpath(*parts[: count + 1]) for count in range(len(parts))]
    return [folder for folder in folders if is_folder(folder, "written") and not is_within(root, folder)]


def is_within(root: Path, target: Path) -> bool:
    """Whether `target`, with every link resolved, lies below `root`."""
    real = os.path.realpath(root)
    try:
        return os.path.commonpath((real, os.path.realpath(target))) == real
    except ValueError:  # different drives
        return False
