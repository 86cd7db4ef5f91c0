"""Run by ComfyUI's Python: a script within ComfyUI's own modules, with the pack loaded as `pack`, without a server.

    python inside.py COMFYUI SCRIPT [ARGUMENT...]
"""

import importlib.util
import runpy
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def load_pack() -> None:
    spec = importlib.util.spec_from_file_location("pack", REPOSITORY / "__init__.py",
                                                  submodule_search_locations=[str(REPOSITORY)])
    sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "__main__":
    comfy, script, *arguments = sys.argv[1:]
    sys.path.insert(0, comfy)
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401

    load_pack()
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
