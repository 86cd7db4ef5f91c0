"""The user's patterns: the same matches as Python's, and none that takes for ever."""

import re
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tpec.errors import TpecError
from tpec.patterns import LONGEST_PATTERN, check_pattern, matches
from tpec.settings import Settings

NAMES = ["double_blocks.0.img_attn.qkv.weight", "model.diffusion_model.single_blocks.37.linear1.weight", "", "a",
         "aaab",
         "blocks.10.ffn.0.weight", "A.B", "x\n", "\u6a21.weight"]
PATTERNS = ["", ".", "attn", r"blocks\.(0|1|37)\.", r"^double.*qkv\.weight$", r"(?i)BLOCKS\.\d+", r"[^.]+\.[0-9]{2}\.",
            r"^(?!.*attn)", r"(?=.*blocks).*weight", r"\bqkv\b", "(?:single|double)_blocks", "a{2,3}b", "a{,2}",
            "(a|ab)*b",
            r"linear[12]\.weight\Z", "x$", r"[]a]", r"[^]a]", r"[\]\d]", "(?P<kind>img|txt)_attn", "a*?b", "{",
            "a{x}", r"\x61",
            r"(\.\d+)+", "|a", "(|a)+$", r"\Aa", r"\Bb", "((a*)*)*b", r"\.", "a{0}b", "(?:)", r"\w+\s?"]
HOSTILE = [r"(a+)+$", "(a|a)*c", "(.*)*x", "(a|aa)+$", "(a?){50}a{50}c", ".*.*.*.*.*.*.*x", "(((a*)*)*)*b",
           "(a|b|ab)*c",
           "(?:a|a)" * 60 + "c", "a?" * 100 + "a" * 100 + "c", "(x+x+)+y", "(?=(a+)+c)", "((a{1,400}){1,400}){1,400}b",
           "(.{0,900}){0,900}x", "(?!(a|a)*c)(?!(a|a)*c)x"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ordinary_patterns_match_as_in_python(pattern: str) -> None:
    check_pattern("include", pattern)
    for name in NAMES:
        assert matches(pattern, name) == bool(re.search(pattern, name)), name


pieces = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", "^", "$", r"\b", "(?:a|b)", "(a|ab)", "(b|)",
                          "(?=a)",
                          "(?!b)", "|", r"\w", "(ab)", "(a*b)", "1"])
repeats = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,2}", "{,2}", "{2,}", "*?", "+?"])


@given(parts=st.lists(st.tuples(pieces, repeats), max_size=6), name=st.text("ab.1\n", max_size=9))
@example(parts=[("^", ""), ("(b|)", "+"), ("$", "")], name="b")
@settings(max_examples=1500)
def test_any_pattern_matches_as_in_python(parts: list, name: str) -> None:
    pattern = "".join(piece + repeat for piece, repeat in parts)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wanted = bool(re.search(pattern, name))
    except (re.error, FutureWarning):
        return
    check_pattern("include", pattern)
    assert matches(pattern, name) == wanted


@pytest.mark.parametrize("pattern", HOSTILE)
def test_patterns_that_hang_python_end(pattern: str) -> None:
    check_pattern("include", pattern)
    for length in (30, 200, 1000):
        try:
            matches(pattern, "a" * length + "!")
        except TpecError as error:
            assert "too many steps" in str(error)


@given(pattern=st.text("ab.*+?(){}[]|^$\\0123,:=!<P>d", max_size=30))
@settings(max_examples=500)
def test_any_text_is_a_pattern_or_one_sentence(pattern: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check_pattern("include", pattern)
        except TpecError as error:
            assert str(error).isprintable()
            return
        matches(pattern, "ab.0ab.1")


@pytest.mark.parametrize(("pattern", "words"), [
    (r"(a)\1", "backreference"), ("(?<=a)b", "group such as"), ("(?i:a)", "group such as"),
    ("(a)?(?(1)b|c)", "group such as"), ("(", "not a regular expression"), ("a" * (LONGEST_PATTERN + 1),
    "501 characters"),
    ("a{99999999999999999999}", "not a regular expression|takes"), ("(" * 40 + ")" * 40, "30 groups inside")])
def test_what_could_take_for_ever_is_refused_when_the_settings_are_made(pattern: str, words: str) -> None:
    with pytest.raises(TpecError, match=words):
        Settings(exclude=pattern)


def test_endless_names_match_nothing() -> None:
    assert not matches("a", "a" * 2_000_000)
