"""Measurements behind the numbers in the README; run as modules from the repository's root (see README.md)."""

import sys
from pathlib import Path

# What makes models and drives a real ComfyUI is the tests' own, and they are no package.
_TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path += [str(folder) for folder in (_TESTS, _TESTS / "comfy") if str(folder) not in sys.path]
