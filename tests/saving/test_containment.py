"""Names for new files by the rules of Windows and POSIX, and in a real folder with links in it."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_paths import containment, escapes, make_folder, random_name, run

contained = containment()
TpecError = contained.TpecError

REFUSED = {
    "traversal": ["..", "../x", "a/../../x", "a/..", "..\\x", "a\\..\\x", "a/../b", "....//../x"],
    "absolute": ["/etc/passwd", "\\x", "//host/share/x", "\\\\host\\share\\x", "\\\\?\\C:\\x", "\\\\.\\NUL", " /x"],
    "drive": ["C:x", "c:\\x", "Z:/x", "a/C:x", "C:"],
    "stream": ["a:b", "a.safetensors:s", "a/b::$DATA", "abc:"],
    "device": ["CON", "nul", "Com1.txt", "LPT9.safetensors", "a/PRN", "COM\u00b9", "lpt\u00b3.x", "CONIN$", "conout$.a",
               "NUL .txt", "aux.tar.gz", "CLOCK$", "com0"],
    "ending": ["a/x.", "a./b", "a /b", "...", "x .", ". ."],
    "empty": ["", " ", "a//b", "a/", "./a", "a/./b", "."],
    "characters": ["a\0b", "a\nb", "a\x7fb", "\ud800", "a\u2028b", "a\u202eb", 'a"b', "a*", "a?", "<a", "a|b"],
    "length": ["n" * 201, "\u6a21" * 67, "\U0001f600" * 51, "/".join(["abcd"] * 200)],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, kind: str) -> None:
    for name in REFUSED[kind]:
        with pytest.raises(TpecError):
            contained.save_target(tmp_path, name)


@pytest.mark.parametrize(("name", "below"), [
    ("model", "model.safetensors"), ("a/b", "a/b.safetensors"), ("a\\b", "a/b.safetensors"),
    ("a/b\\c.safetensors", "a/b/c.safetensors"), (" x ", "x.safetensors"), ("a.SafeTensors", "a.SafeTensors"),
    ("v1.5", "v1.5.safetensors"), ("~", "~.safetensors"), ("$HOME", "$HOME.safetensors"), ("a..b", "a..b.safetensors"),
    ("console", "console.safetensors"), ("com10", "com10.safetensors"), ("\u6a21\u578b", "\u6a21\u578b.safetensors"),
    ("\uff0e\uff0e\uff0fx", "\uff0e\uff0e\uff0fx.safetensors"), ("n" * 200, "n" * 200 + ".safetensors")])
def test_plain_names_stay_as_they_are(tmp_path: Path, name: str, below: str) -> None:
    assert contained.save_target(tmp_path, name) == tmp_path / below


def test_every_accepted_name_can_be_written(tmp_path: Path) -> None:
    target = contained.save_target(tmp_path, "\u6a21" * 66)
    target.with_name(target.name + ".partial").write_bytes(b"")


def test_links_that_lead_out_are_refused_unless_somebody_made_them_for_folders(tmp_path: Path) -> None:
    root, other = make_folder(tmp_path)
    assert contained.save_target(root, "out/x").resolve() == other / "x.safetensors"
    for name in ("file", "file.safetensors", "gone/x"):
        with pytest.raises(TpecError, match="leads out of"):
            contained.save_target(root, name)
    (other / "again.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(TpecError, match="leads out of"):
        contained.save_target(root, "out/again")


@given(name=st.text(st.characters(exclude_categories=()), max_size=40) | st.randoms(use_true_random=False).map(
    random_name))
@example(name="NUL .txt")
@example(name="COM\u00b2")
@example(name="a\ud800")
@settings(max_examples=500)
def test_any_name_is_refused_or_contained_under_both_rule_sets(name: str) -> None:
    root = Path("models")
    try:
        target = contained.save_target(root, name)
    except TpecError as error:
        assert str(error).isprintable() and str(error).endswith(".")
        return
    assert escapes(list(target.relative_to(root).parts)) is None


@pytest.mark.parametrize("parts", [["..", "x"], ["a", ".."], ["C:x"], ["/x"], ["\\\\h\\s\\x"], ["nul.txt"], ["a."],
                                   ["a:b"], ["COM1 .x"], ["a\0"], ["n" * 256], ["a/b"], ["."], [""]])
def test_the_judge_sees_escapes(parts: list[str]) -> None:
    assert escapes(parts)


def test_some_seconds_of_questions(tmp_path: Path) -> None:
    outcomes, escaped = run(count=5000, seconds=60, seed=3, place=tmp_path)
    assert not escaped
    assert outcomes["accepted"] > 300 and outcomes["refused"] > 300
