"""Random names asked for as save targets: `python -m benchmarks.fuzz_paths --count 1000000 --seconds 300 --seed 1`.

What is accepted is held against the path rules of Windows and POSIX (pathlib, ntpath, posixpath) and against a real
folder with links in it. Exit code 1 when a name leads out of its folder, to a device or to a stream.
"""

import argparse
import ntpath
import os
import posixpath
import random
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType

from .pack import of_pack

_PIECES = ["..", ".", "...", "/", "\\", "//", "\\\\", "a", "model", "C:", "c:", "Z:\\", ":", "::$DATA", "a:b", "CON",
           "nul", "PRN",
           "COM1", "com1.txt", "LPT9", "COM\u00b9", "CONIN$", "CLOCK$", "NUL .txt", "con.", "aux ", " ", ".", "\t",
           "\n", "\0",
           "\x1f", "\x7f", "~", "$HOME", "%TEMP%", "*", "?", '"', "<", "|", "\\\\?\\", "\\\\.\\",
           "\\\\host\\share\\", "out", "inside", "file",
           "gone", "loop", "\u0430", "\U0001f600", "e\u0301", "\uff0f", "\uff0e\uff0e", "\u2024\u2024", "\u2215",
           "\ud800", "\u202e", "\u2028", "\u3000",
           "n" * 90, "\u6a21" * 60, ".safetensors", "safetensors", "etc/passwd", "../" * 8, "-", "&", "'", "{}",
           "\r\n", "\u200b"]
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *(f"{port}{n}" for port in ("COM", "LPT")
                                                             for n in "0123456789\u00b9\u00b2\u00b3")}


def containment() -> ModuleType:
    """nodes/saving/containment.py."""
    return of_pack("nodes.saving.containment")


def random_name(source: random.Random) -> str:
    """Some pieces one after another, with or without slashes between them."""
    between = source.choice(["", "", "/", "\\"])
    return between.join(source.choice(_PIECES) for _ in range(source.choice([1, 2, 2, 3, 4, 6, 12])))


def escapes(parts: list[str]) -> str | None:
    """What is wrong with accepted parts by either system's rules, or None; shares no code with the pack."""
    for kind, rules, root in ((PureWindowsPath, ntpath, "D:\\models"), (PurePosixPath, posixpath, "/models")):
        joined = kind(root, *parts)
        plain = kind(rules.normpath(str(joined)))
        if plain != joined or not plain.is_relative_to(root) or len(plain.parts) != len(kind(root).parts) + len(parts):
            return f"leads out of its folder ({kind.__name__}: {plain})"
    for part in parts:
        if any(unicodedata.category(char) in ("Cc", "Cs") for char in part) or set(part) & set('<>:"|?*/\\'):
            return "holds a character that a system refuses"
        if part[-1] in ". " or part.partition(".")[0].rstrip(" ").upper() in _DEVICES:
            return "means something else on Windows"
        if len(part.encode()) > 255:
            return "is too long for a disk"
    return None


def make_folder(place: Path) -> tuple[Path, Path]:
    """A root with links in it, and the folder that it may be linked to."""
    root, other = place / "root", place / "other"
    for folder in (root / "inside", other):
        folder.mkdir(parents=True)
    (place / "secret.safetensors").write_bytes(b"")
    (root / "out").symlink_to(other)
    (root / "file.safetensors").symlink_to(place / "secret.safetensors")
    (root / "gone").symlink_to(place / "nowhere")
    (root / "loop").symlink_to("loop")
    return root, other


def run(count: int, seconds: float, seed: int, place: Path) -> tuple[Counter[str], list[str]]:
    """Outcomes, and the names that escaped with how."""
    asked = containment()
    source, outcomes, escaped = random.Random(seed), Counter(), []
    root, other = make_folder(place)
    allowed = [os.path.realpath(root) + os.sep, os.path.realpath(other) + os.sep]
    end = time.monotonic() + seconds
    while sum(outcomes.values()) < count and time.monotonic() < end:
        name = random_name(source)
        try:
            target = asked.save_target(root, name)
        except asked.TpecError:
            outcomes["refused"] += 1
            continue
        fault = escapes(list(target.relative_to(root).parts))
        if fault is None and not os.path.realpath(target).startswith(tuple(allowed)):
            fault = f"is {os.path.realpath(target)}"
        outcomes["accepted" if fault is None else "ESCAPED"] += 1
        if fault:
            escaped.append(f"{name!r} {fault}")
    return outcomes, escaped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        outcomes, escaped = run(options.count, options.seconds, options.seed, Path(place))
    print(f"{sum(outcomes.values())} names, seed {options.seed}: {dict(outcomes)}, {len(escaped)} escapes")
    print("\n".join(escaped[:20]))
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
