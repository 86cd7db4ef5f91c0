"""Every refusal says what to do: read off the sources, and off the sentences that they are put together from."""

import ast
import errno
import os
import re
from pathlib import Path

import pytest
from imports import PACK
from samples import REPOSITORY

from tpec.errors import sentence, system_fault
from tpec.model.families.refusals import REFUSALS, adapters, controlnet

_ADVICE = re.compile(
    r"\b(add|allow|calibrate|check|choose|close|collect|connect|convert|correct|create|delete|download|enter|free|get|"
    r"give|keep|leave|load|make|merge|must be|name|quantize|refresh|remove|rename|repeat|report|run|save|set|shorten|"
    r"start|take|update|use|wait|write)\b", re.IGNORECASE)
#: A sentence that ends in what is put together elsewhere, and a reason that becomes part of one.
_HANDED_ON = re.compile(r"\{\}\.?$|[^.]$")


def _text(node: ast.expr) -> str | None:
    """A string's text with {} for what is put in; None for what is no string here."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def _refusals(source: str) -> list[tuple[int, str]]:
    """Line and text of each TpecError that is made with a text of its own."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args
             and getattr(node.func, "id", "") == "TpecError"]
    return [(call.lineno, text) for call in calls if (text := _text(call.args[0])) is not None]


def _without_advice(source: str) -> list[tuple[int, str]]:
    return [(line, text) for line, text in _refusals(source)
            if not _ADVICE.search(text) and not _HANDED_ON.search(text)]


@pytest.mark.parametrize("path", PACK, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_refusal_says_what_to_do(path: Path) -> None:
    assert _without_advice(path.read_text("utf-8")) == []


def test_one_without_is_found() -> None:
    assert len([text for path in PACK for _, text in _refusals(path.read_text("utf-8"))]) > 150
    assert _without_advice('raise TpecError(f"{name} is damaged.")') == [(1, "{} is damaged.")]
    assert _without_advice('raise TpecError(f"{name} is damaged: download it again.")') == []


@pytest.mark.parametrize("text", [
    *(rule.sentence for rule in REFUSALS), adapters(["a.lora_A.weight"]), controlnet(["controlnet_x"]),
    adapters(["a.lora_A.weight", *map(str, range(9))])])
def test_every_kind_of_file_that_is_refused_has_another_to_take(text: str) -> None:
    assert _ADVICE.search(text.rpartition(":")[2])


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_whatever_the_system_says_there_is_something_to_do(number: int) -> None:
    error = OSError(number, os.strerror(number), "model.safetensors")
    assert system_fault(error).startswith(f"{os.strerror(number)}; ")
    assert _ADVICE.search(system_fault(error).rpartition("; ")[2])
    assert sentence(error) == f"model.safetensors cannot be used: {system_fault(error)}."
