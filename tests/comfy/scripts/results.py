"""The temp folder of results: prints one line per promise that is kept. Argument: a folder."""

import os
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import folder_paths
from pack.nodes.handles import CheckpointHandle, QuantizeRequest
from pack.nodes.host import results as spool
from pack.tpec.command.demo import demo_tensors
from pack.tpec.files.checkpoint import open_checkpoint
from pack.tpec.files.plain import write_safetensors
from pack.tpec.settings import Settings

base = Path(sys.argv[1])
folder_paths.set_temp_directory(str(base / "temp"))


def silent(event: object) -> None:
    pass


silent.text = lambda *_, **__: None
source = base / "model.safetensors"
write_safetensors(source, demo_tensors(), {})
request = QuantizeRequest(CheckpointHandle(open_checkpoint(source), "auto"), Settings(method="nearest"), "cpu")
made = spool.quantized(request, silent)
content = made.path.read_bytes()
made.path.write_bytes(b"another file of this name")
if spool.ensure_file(made, silent).path.read_bytes() == content:
    print("a changed file is made again")
made.path.unlink()
if spool.ensure_file(made, silent).path.read_bytes() == content:
    print("a missing file is made again")
state = os.stat(made.path).st_mtime_ns
if spool.ensure_file(made, silent) is made and os.stat(made.path).st_mtime_ns == state:
    print("an intact file is not")

# A full disk: what was left behind goes first, what is being written stays, and a file may vanish meanwhile.
folder = made.path.parent
new = folder / "new.safetensors"
old, journal, lock, busy = (folder / f"{name}.safetensors.partial{end}" for name, end in (
    ("old", ""), ("old", ".journal0"), ("old", ".lock"), ("busy", "")))
for path in (old, journal, lock, busy):
    path.write_bytes(bytes(1000))
hours_ago = time.time() - 7200
for path in (old, journal, lock):
    os.utime(path, (hours_ago, hours_ago))
(folder / "vanished.safetensors").symlink_to(folder / "nowhere")
usage = namedtuple("usage", "total used free")
spool.shutil.disk_usage = lambda path: usage(0, 0, 0 if old.exists() or journal.exists() else 10**6)
spool._make_room(new, 1000)
if not old.exists() and not journal.exists():
    print("leftovers go first")
if busy.exists() and lock.exists() and made.path.exists():
    print("the rest stays")
spool.shutil.disk_usage = lambda path: usage(0, 0, 100)
new.with_name(f"{new.name}.partial").write_bytes(bytes(1000))
spool._make_room(new, 1000)
if made.path.exists():
    print("what begins anew counts as room")
spool._make_room(new, 2000)
if not made.path.exists() and busy.exists():
    print("then results")

# What nobody holds goes, but for the last few.
spool.shutil.disk_usage = lambda path: usage(0, 0, 10**12)
for path in folder.glob("*"):
    path.unlink()
several = [spool.quantized(replace(request, settings=Settings(method="nearest", exclude=f"no{at}")), silent)
           for at in range(6)]
if all(one.path.exists() for one in several):
    print("what is in use stays")
paths = [one.path for one in several]
del several
print(*(path.exists() for path in paths))
