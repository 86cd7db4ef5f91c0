"""What the pack adds to ComfyUI's start: the seconds of loading it beside those of an empty pack.

    python -m benchmarks.import_cost
    python -m benchmarks.import_cost --runs 15 --modules 20

Every run is a process of its own with ComfyUI's Python: ComfyUI and its built-in nodes are imported first, as at a real
start, then one pack is loaded by ComfyUI's own `load_custom_node`, which imports it and asks it for its nodes. Runs of
both packs take turns, after one that writes Python's bytecode, of a copy of this repository's pack. CPU seconds are
those of the process and hardly depend on what else the machine does. `--modules` lists what took longest, by Python's
own -X importtime.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from .common import ROOT, markdown_table

sys.path.insert(0, str(ROOT / "tests" / "comfy"))
from comfy_server import find_comfy, find_python  # noqa: E402

_EMPTY = """from comfy_api.latest import ComfyExtension

class Empty(ComfyExtension):
    async def get_node_list(self):
        return []

async def comfy_entrypoint():
    return Empty()
"""
_LOAD = """
import asyncio, json, logging, sys, time

pack = sys.argv[1]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, "")
import comfy.options
comfy.options.enable_args_parsing()
import execution, nodes, server

async def load():
    await nodes.init_builtin_extra_nodes()
    modules, wall, cpu = set(sys.modules), time.perf_counter(), time.process_time()
    print("LOADING", file=sys.stderr)
    if not await nodes.load_custom_node(pack):
        sys.exit("the pack did not load")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print("LOADED", file=sys.stderr)
    return {"wall": wall, "cpu": cpu, "modules": len(set(sys.modules) - modules)}

print(json.dumps(asyncio.run(load())))
"""


#: What a user's start of ComfyUI does not have; without bytecode every start would compile anew.
_NOT_OF_A_START = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")


def load_once(comfy: Path, python: str, pack: Path, *flags: str) -> tuple[dict[str, float], str]:
    """Seconds and number of modules of one load in a new process, and what Python said on stderr meanwhile."""
    env = {name: value for name, value in os.environ.items() if name not in _NOT_OF_A_START}
    done = subprocess.run([python, *flags, "-c", _LOAD, str(pack)], cwd=comfy, env=env | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ComfyUI could not load {pack}:\n{done.stderr[-3000:]}")
    said = done.stderr.partition("LOADING\n")[2].partition("LOADED\n")[0]
    return json.loads(done.stdout.splitlines()[-1]), said


def slowest(said: str, count: int) -> str:
    """A table of the modules that took longest by themselves, from the lines of -X importtime."""
    lines = [line.removeprefix("import time:").split("|") for line in said.splitlines() if "import time:" in line]
    rows = sorted(((int(own), int(total), name.strip()) for own, total, name in lines), reverse=True)
    return markdown_table(["module", "itself, ms", "with what it imports, ms"],
                          [(name, f"{own / 1e3:.1f}", f"{total / 1e3:.1f}") for own, total, name in rows[:count]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="of each pack (default: 9)")
    parser.add_argument("--modules", type=int, default=0, metavar="N", help="list the N slowest modules as well")
    args = parser.parse_args()
    comfy = find_comfy()
    python = comfy and find_python(comfy)
    if not comfy or not python:
        raise SystemExit("There is no ComfyUI: set COMFYUI_PATH, and COMFYUI_PYTHON to its Python.")
    with tempfile.TemporaryDirectory() as folder:
        packs = {"empty pack": _empty_pack(Path(folder)), "this pack": _this_pack(Path(folder))}
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in packs}
        for number in range(args.runs + 1):
            for name, pack in packs.items():
                facts, _ = load_once(comfy, python, pack)
                if number:
                    seen[name].append(facts)
        said = load_once(comfy, python, packs["this pack"], "-X", "importtime")[1] if args.modules else ""
    print(f"{args.runs} runs of each; ms above the empty pack in the last column\n")
    print(markdown_table(["pack", "modules", "wall: least", "median", "CPU: least", "median", "above: CPU median"],
                         [_row(name, runs, seen["empty pack"]) for name, runs in seen.items()]))
    if args.modules:
        print("\n" + slowest(said, args.modules))


def _empty_pack(folder: Path) -> Path:
    pack = folder / "empty_pack"
    pack.mkdir()
    (pack / "__init__.py").write_text(_EMPTY, "utf-8")
    shutil.copy(ROOT / "pyproject.toml", pack)
    return pack


def _this_pack(folder: Path) -> Path:
    pack = folder / "tpec_fp8"
    for name in ("tpec", "nodes", "web"):
        shutil.copytree(ROOT / name, pack / name)
    for name in ("__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / name, pack)
    return pack


def _row(name: str, runs: list[dict[str, float]], base: list[dict[str, float]]) -> list[str]:
    def ms(key: str, choose=statistics.median, of: list[dict[str, float]] = runs) -> float:
        return 1e3 * choose(run[key] for run in of)

    times = [f"{ms(key, choose):.0f}" for key in ("wall", "cpu") for choose in (min, statistics.median)]
    return [name, str(runs[0]["modules"]), *times, f"{ms('cpu') - ms('cpu', of=base):.0f}"]


if __name__ == "__main__":
    main()
