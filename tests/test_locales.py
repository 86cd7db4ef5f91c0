"""The languages of the nodes: nothing missing, nothing stale, and nothing left in English."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import REPOSITORY

FOLDER = REPOSITORY / "locales"
LANGUAGES = ["de", "es", "fr", "ja", "ko", "ru", "zh", "zh-TW"]
#: Words that are the same in other languages, and names of formats.
SAME = {"cfg", "clip", "vae", "psnr", "model", "name", "seed", "format", "prompts", "calibration", "positive", "steps",
        "summary", "scheduler", "seeds", "images", "exclude", "include", "device", "path"}


def texts(language: str) -> dict[str, str]:
    """All texts by their place, as 'TPECReport.inputs.theme.tooltip'."""
    data = json.loads((FOLDER / language / "nodeDefs.json").read_text("utf-8"))
    return dict(_flat(data))


def _flat(data: dict, at: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def test_all_languages_are_there() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(["en", *LANGUAGES])


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_missing_or_stale(language: str) -> None:
    """What is missing is to be added to tests/comfy/translations; then run tests/comfy/locales.py."""
    english, other = texts("en"), texts(language)
    assert sorted({english[place] for place in set(english) - set(other)}) == [], "missing"
    assert sorted(set(other) - set(english)) == [], "stale"


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_translated(language: str) -> None:
    english, other = texts("en"), texts(language)
    same = {english[place] for place in set(english) & set(other) if english[place] == other[place]}
    assert same <= SAME
    long = [text for place, text in english.items() if place.endswith(("tooltip", "description"))]
    assert not set(long) & set(other.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_files_are_what_the_translations_make(language: str) -> None:
    """Edits belong into tests/comfy/translations."""
    table = json.loads((REPOSITORY / "tests" / "comfy" / "translations" / f"{language}.json").read_text("utf-8"))
    english = texts("en")
    assert texts(language) == {place: table[text] for place, text in english.items() if text in table}
    main = json.loads((FOLDER / language / "main.json").read_text("utf-8"))
    assert set(main) == set(json.loads((FOLDER / "en" / "main.json").read_text("utf-8")))


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_of_choices_stay_as_they_are(language: str) -> None:
    """Tooltips explain the combos' values, which no language translates."""
    english, other = texts("en"), texts(language)
    words = ("universal", "comfy_quant", "scaled_fp8", "full_precision", "nearest", "tpec ", "models", "output",
             "auto", "output/tpec_calibration", "extra_model_paths.yaml", ".safetensors")
    for place, text in english.items():
        if place.endswith("tooltip") and place in other:
            assert [word for word in words if word in text and word.strip() not in other[place]] == [], place


def test_chinese_help_pages() -> None:
    """One for every English page, naming the same inputs and outputs by their names in the prompt."""
    for page in sorted((REPOSITORY / "web" / "docs").glob("*.md")):
        chinese = page.with_suffix("") / "zh.md"
        assert _bold(chinese) >= _bold(page), chinese


def _bold(page: Path) -> set[str]:
    return {word for line in page.read_text("utf-8").splitlines() if line.startswith("- **")
            for word in line.split("**")[1::2]}
