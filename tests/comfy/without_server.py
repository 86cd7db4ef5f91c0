"""ComfyUI's own modules without a server, for scripts that its Python runs: SCRIPT COMFYUI [ARGUMENT...]"""

import sys
import types
from pathlib import Path

_HERE = Path(__file__).parent


def start() -> list[str]:
    """Makes ComfyUI importable, set to the CPU, and returns the script's arguments; before any import of ComfyUI.

    `pack` then is this pack without its packages' __init__, which start a server: inside.py has a whole one.
    """
    comfyui, *arguments = sys.argv[1:]
    sys.path[:0] = [comfyui, str(_HERE.parent), str(_HERE)]
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401 - reads sys.argv now

    for name in ("pack", "pack.nodes"):
        module = types.ModuleType(name)
        module.__path__ = [str(_HERE.parents[1] / name.replace("pack", "").strip("."))]
        sys.modules[name] = module
    return arguments
