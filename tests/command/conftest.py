"""A small model, and signals as they were before."""

import signal
from pathlib import Path

import pytest
from samples import save_flux


@pytest.fixture(autouse=True)
def same_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_flux(tmp_path)
