"""Names that come from strangers, as parts of a path that stays in its folder on every system; pure logic, no disk.

Windows' rules: https://learn.microsoft.com/windows/win32/fileio/naming-a-file. They hold everywhere, so that a file has
one name on all of a user's machines.
"""

import re
import unicodedata

from ..errors import TpecError

#: Bytes (UTF-8) of one part, which leaves room below the 255 of most disks for what is added; and of all together.
MOST_BYTES = 200
MOST_BYTES_ALTOGETHER = 800

# Superscript digits are digits there, and what follows a space or dot does not count.
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *([.:].*)?",
                     re.IGNORECASE | re.DOTALL)
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


def is_device(part: str) -> bool:
    """Whether Windows takes this name for a device, whatever the folder."""
    return _DEVICE.fullmatch(part.rstrip(". ")) is not None


def is_bare_name(name: str) -> bool:
    """Whether a name of an existing file is that of a file in the same folder, by every system's rules."""
    return (name not in ("", ".", "..") and not re.search(r"[/\\:\x00]", name) and not is_device(name))
