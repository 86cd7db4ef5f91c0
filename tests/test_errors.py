"""Messages stay one readable line whatever names they quote."""

import pickle

from hypothesis import example, given
from hypothesis import strategies as st

from tpec.errors import Interrupted, TpecError, one_line


def test_unprintable_characters_are_spelled_out() -> None:
    assert str(TpecError("Tensor '\n' of \x1b[31m\u2028 is damaged.")) == r"Tensor '\n' of \x1b[31m\u2028 is damaged."


def test_sentences_in_any_script_stay_as_they_are() -> None:
    sentence = "Model '\u6a21\u578b' of Gr\u00f6\u00dfe 1 is damaged."
    assert str(TpecError(sentence)) == sentence


@given(text=st.text(st.characters(exclude_categories=())))
@example(text="\ud800")
def test_any_text_becomes_one_line_that_can_be_printed(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    line.encode()
    assert one_line(line) == line


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(Interrupted("stopped\n")))
    assert isinstance(error, Interrupted) and str(error) == r"stopped\n"
