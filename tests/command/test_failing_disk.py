"""Where the disk does not say what a name is, the user reads its reason, not that there is nothing of that name."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
from safetensors.torch import save_file
from samples import save_flux, tiny_flux

from benchmarks.shim import FOR_EVER, Fault, missing, run_with_shim
from tpec.errors import system_fault

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"no fault can be put below a program: {missing()}")


def shards(folder: Path, index: bool) -> None:
    """A model of two files in `folder`."""
    folder.mkdir()
    tensors = tiny_flux()
    names = {f"m-0000{number}-of-00002.safetensors": sorted(tensors)[number - 1::2] for number in (1, 2)}
    for file, its in names.items():
        save_file({name: tensors[name] for name in its}, folder / file)
    if index:
        table = {name: file for file, its in names.items() for name in its}
        (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


#: Arguments, the kind of call that fails, on what, and what is said of it.
CASES = {
    "input": (["model.safetensors"], "stat", "/model.safetensors", "model.safetensors cannot be read"),
    "folder": (["indexed"], "stat", "/indexed", "indexed cannot be read"),
    "index": (["indexed/m.safetensors.index.json"], "stat", ".index.json", "index.json cannot be read"),
    "shard of an index": (["indexed"], "stat", "m-00002", "m-00002-of-00002.safetensors cannot be read"),
    "shard": (["loose/m-00001-of-00002.safetensors"], "stat", "m-00002", "m-00002-of-00002.safetensors cannot be read"),
    "folder of a pattern": (["loose/*.sft"], "list", "/loose", "loose cannot be read"),
    "folder of a report": (["model.safetensors", "--report", "texts/r.json"], "stat", "/texts",
                           "texts cannot be written"),
    "report": (["model.safetensors", "--report", "r.json"], "stat", "/r.json", "r.json cannot be written"),
    "folder of the output": (["model.safetensors", "-o", "texts/q.safetensors"], "stat", "/texts",
                             "texts/q.safetensors cannot be written"),
    "working file": (["model.safetensors", "-o", "q.safetensors"], "stat", ".partial", "partial cannot be written"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    arguments, kind, place, words = CASES[case]
    save_flux(tmp_path)
    shards(tmp_path / "indexed", index=True)
    shards(tmp_path / "loose", index=False)
    (tmp_path / "texts").mkdir()
    for name, value in Fault(kind, errno.EIO, times=FOR_EVER, path=place).environment().items():
        monkeypatch.setenv(name, value)
    given = [text if text.startswith("-") else str(tmp_path / text) for text in arguments]
    done = run_with_shim("tpec", ["quantize", *given, "--method", "nearest", "--quiet"], capture_output=True, text=True)
    assert done.returncode == 1, done
    end = re.escape(f"{words}: {system_fault(OSError(errno.EIO, os.strerror(errno.EIO)))}.\n")
    assert re.fullmatch(rf"tpec: [^\n]*{end}", done.stderr), done.stderr
