"""The command line as its tests call it, in this process."""

import re

import pytest

from tpec.command.cli import main

LAYER = "single_blocks.0.linear1"
DEFAULT = "model_float8_e4m3fn_scaled_learned_svd.safetensors"


def tpec(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def one_line(capsys: pytest.CaptureFixture, words: str) -> None:
    error = capsys.readouterr().err
    assert re.fullmatch(r"tpec: [^\n]+\.\n", error), error
    assert re.search(words, error), error
    assert "Traceback" not in error
