"""What the pack adds to ComfyUI's start: the time of loading it beside that of an empty pack.

    python -m benchmarks.import_cost
    python -m benchmarks.import_cost --pairs 15 --modules 20

Every start is a process of its own with ComfyUI's Python: ComfyUI and its built-in nodes are imported first, as at a
real start, then some empty pack, then an empty one and a copy of this repository's pack, in turns this or that way
round. ComfyUI's own `load_custom_node` loads them, which imports a pack and asks it for its nodes. So the two of a pair
are measured a moment apart, and their difference says little about what else the machine does; CPU time (of the thread
that imports, user and system) says less still. Starts with bytecode that is there are counted first, then those that
have to compile, as the first after an installation or update. `--modules` lists what took longest, by Python's own -X
importtime, which adds a good part itself.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .common import ROOT, markdown_table
from .server import installed

_EMPTY = """from comfy_api.latest import ComfyExtension

class Empty(ComfyExtension):
    async def get_node_list(self):
        return []

async def comfy_entrypoint():
    return Empty()
"""
#: Loads the packs that are its arguments one after the other and prints a line for each.
_LOAD = """
import asyncio, json, sys, time

packs = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, "")
import comfy.options
comfy.options.enable_args_parsing()
import execution, nodes, server

async def load(pack):
    modules, wall, cpu = set(sys.modules), time.perf_counter(), time.thread_time()
    loaded = await nodes.load_custom_node(pack)
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    if not loaded:
        sys.exit("the pack did not load")
    print(f"LOADED {pack}", file=sys.stderr)
    return {"wall": wall, "cpu": cpu, "modules": len(set(sys.modules) - modules)}

async def load_all():
    await nodes.init_builtin_extra_nodes()
    print("LOADED ComfyUI", file=sys.stderr)
    return [await load(pack) for pack in packs]

print(json.dumps(asyncio.run(load_all())))
"""
#: What a user's start of ComfyUI does not have; without bytecode every start would compile anew.
_NOT_OF_A_START = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")


class Load(NamedTuple):
    """Seconds of loading one pack, and how many modules it brought."""

    wall: float
    cpu: float
    modules: int


class Pair(NamedTuple):
    """Loads of one start."""

    empty: Load
    ours: Load


class Starts:
    """Starts of one ComfyUI with copies of the packs below `folder`."""

    def __init__(self, comfy: Path, python: str, folder: Path) -> None:
        self._comfy, self._python = comfy, python
        self._first, self._empty = (_empty_pack(folder / name) for name in ("first_pack", "empty_pack"))
        self._ours = _this_pack(folder / "tpec_fp8")

    def pair(self, ours_first: bool, cold: bool = False) -> Pair:
        """One start; `cold` without the bytecode of this pack."""
        if cold:
            for cache in list(self._ours.rglob("__pycache__")):
                shutil.rmtree(cache)
        both = [self._ours, self._empty] if ours_first else [self._empty, self._ours]
        loads = [Load(**facts) for facts in json.loads(self._run([self._first, *both]).stdout.splitlines()[-1])]
        return Pair(*(loads[:0:-1] if ours_first else loads[1:]))

    def import_times(self) -> str:
        """What Python says on stderr while this pack is loaded."""
        said = self._run([self._first, self._ours], "-X", "importtime").stderr
        return said.partition(f"LOADED {self._first}\n")[2]

    def _run(self, packs: Sequence[Path], *flags: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if name not in _NOT_OF_A_START}
        done = subprocess.run([self._python, *flags, "-c", _LOAD, *map(str, packs)], cwd=self._comfy,
                              env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"ComfyUI could not load {packs[-1]}:\n{done.stderr[-3000:]}")
        return done


def slowest(said: str, count: int) -> str:
    """A table of the modules that took longest by themselves, from the lines of -X importtime."""
    lines = [line.removeprefix("import time:").split("|") for line in said.splitlines() if "import time:" in line]
    rows = sorted(((int(own), int(total), name.strip()) for own, total, name in lines), reverse=True)
    return markdown_table(["module", "itself, ms", "with what it imports, ms"],
                          [(name, f"{own / 1e3:.1f}", f"{total / 1e3:.1f}") for own, total, name in rows[:count]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9, help="starts with bytecode, a pair of packs each (default: 9)")
    parser.add_argument("--cold", type=int, default=3, help="starts without this pack's bytecode (default: 3)")
    parser.add_argument("--modules", type=int, default=0, metavar="N", help="list the N slowest modules as well")
    args = parser.parse_args()
    comfy, python = installed()
    with tempfile.TemporaryDirectory() as folder:
        starts = Starts(comfy, python, Path(folder))
        starts.pair(ours_first=False)  # leaves bytecode and warm disks
        warm = [starts.pair(number % 2 == 1) for number in range(args.pairs)]
        cold = [starts.pair(number % 2 == 1, cold=True) for number in range(args.cold)]
        said = starts.import_times() if args.modules else ""
    rows = [row for name, pairs in (("", warm), (", first start", cold)) if pairs for row in _rows(name, pairs)]
    print(f"ms; {args.pairs} starts, and {args.cold} that compile the pack\n")
    print(markdown_table(["", "modules", "CPU: least", "median", "most", "wall: least", "median", "most"], rows))
    if args.modules:
        print("\n" + slowest(said, args.modules))


def _empty_pack(pack: Path) -> Path:
    pack.mkdir()
    (pack / "__init__.py").write_text(_EMPTY, "utf-8")
    shutil.copy(ROOT / "pyproject.toml", pack)
    return pack


def _this_pack(pack: Path) -> Path:
    for name in ("tpec", "nodes", "web"):
        shutil.copytree(ROOT / name, pack / name)
    for name in ("__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / name, pack)
    return pack


def _rows(name: str, pairs: list[Pair]) -> list[list[str]]:
    def row(what: str, modules: str, values: dict[str, list[float]]) -> list[str]:
        times = [f"{1e3 * choose(values[key]):.0f}" for key in ("cpu", "wall")
                 for choose in (min, statistics.median, max)]
        return [what + name, modules, *times]

    def of(which: str) -> dict[str, list[float]]:
        return {key: [getattr(getattr(pair, which), key) for pair in pairs] for key in ("cpu", "wall")}

    empty, ours = of("empty"), of("ours")
    above = {key: [high - low for high, low in zip(ours[key], empty[key], strict=True)] for key in ours}
    return [row("empty pack", str(pairs[0].empty.modules), empty), row("this pack", str(pairs[0].ours.modules), ours),
            row("**difference in pairs**", "", above)]


if __name__ == "__main__":
    main()
