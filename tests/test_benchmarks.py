"""Benchmarks are run by hand and rarely: that each still finds what it measures."""

import importlib
import sys
from pathlib import Path

import pytest
from samples import REPOSITORY

#: What only some benchmarks need, and what the tests are not installed with.
OF_THEIR_OWN = {"PIL", "atheris"}


@pytest.mark.skipif(sys.platform == "win32", reason="some look at processes as Linux has them")
@pytest.mark.parametrize("path", sorted((REPOSITORY / "benchmarks").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_benchmark_finds_what_it_measures(path: Path) -> None:
    try:
        importlib.import_module(f"benchmarks.{path.stem}")
    except ModuleNotFoundError as missing:
        if missing.name not in OF_THEIR_OWN:
            raise
        pytest.skip(str(missing))
