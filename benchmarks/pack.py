"""Modules of the pack that need no ComfyUI, as ComfyUI would import them: their parent package is the repository."""

import importlib
import importlib.util
import sys
from types import ModuleType

from .common import ROOT


def of_pack(name: str) -> ModuleType:
    """Module `name` of the pack, as "nodes.drawing.plot"; nothing that the pack itself imports is run."""
    if "tpec_pack" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tpec_pack", ROOT / "__init__.py",
                                                      submodule_search_locations=[str(ROOT)])
        if spec is None:
            raise ImportError(f"{ROOT} is no package")
        sys.modules["tpec_pack"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"tpec_pack.{name}")
