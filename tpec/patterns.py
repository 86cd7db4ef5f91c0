"""Regular expressions of the user, searched in tensor names in a time that no pattern and no name can make long.

Python's `re` goes back and tries again, which takes for ever for patterns such as `(a+)+b`, and nothing interrupts it.
Here all places where a match may have got to are carried along at once, as the bits of a number (Thompson 1968,
"Regular expression search algorithm"), and the steps are counted. Only whether there is a match is told. The syntax is
that of `re` less what needs going back: backreferences, lookbehind, conditions, and flags but (?i) at the beginning.
"""

import functools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import TpecError

LONGEST_PATTERN = 500
#: No Linear layer has a longer name; longer ones match nothing.
LONGEST_NAME = 1000
#: Of the matcher, per name; ordinary patterns take some hundreds.
MOST_STEPS = 20_000

_ENDLESS = 1 << 30
_DEEPEST = 30
_REPEAT = re.compile(r"([*+?])|\{(?!\})(\d*)(?:(,)(\d*))?\}")
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|0[0-7]{0,2}|[^1-9xuUN])", re.DOTALL)
_GROUP = re.compile(r"\((?:\?:|\?P<\w+>|(\?[=!])|(?!\?))")


class _Unknown(ValueError):
    """Something that this matcher does not have."""


@dataclass
class _Name:
    """One name while a pattern is searched in it; sets of positions are numbers, bit i for the place before char i."""

    text: str
    left: int = MOST_STEPS
    masks: dict[str, int] = field(default_factory=dict)

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TpecError(f"A pattern takes too many steps in the name '{self.text[:100]}': make it simpler, with "
                            "fewer repetitions inside each other.")

    def where(self, char: re.Pattern[str]) -> int:
        """The positions of characters that `char` takes."""
        key = f"{char.flags} {char.pattern}"
        if key not in self.masks:
            self.step()
            self.masks[key] = sum(1 << at for at, one in enumerate(self.text) if char.fullmatch(one))
        return self.masks[key]


#: From the positions that are reached before a part of the pattern to those behind it.
_Node = Callable[[_Name, int], int]


def _char(pattern: re.Pattern[str]) -> _Node:
    def ends(name: _Name, starts: int) -> int:
        name.step()
        return (starts & name.where(pattern)) << 1
    return ends


def _places(test: Callable[[str, int], bool]) -> _Node:
    def ends(name: _Name, starts: int) -> int:
        name.step()
        return sum(1 << at for at in range(len(name.text) + 1) if starts >> at & 1 and test(name.text, at))
    return ends


def _sequence(parts: list[_Node]) -> _Node:
    def ends(name: _Name, starts: int) -> int:
        for part in parts:
            if not starts:
                break
            starts = part(name, starts)
        return starts
    return ends


def _either(branches: list[_Node]) -> _Node:
    def ends(name: _Name, starts: int) -> int:
        found = 0
        for branch in branches:
            found |= branch(name, starts)
        return found
    return ends if len(branches) > 1 else branches[0]


def _repeated(body: _Node, least: int, most: int) -> _Node:
    def ends(name: _Name, starts: int) -> int:
        enough = len(name.text) + 1  # as often, the places reached no longer change but by matches of nothing
        for _ in range(min(least, enough)):
            name.step()
            starts = body(name, starts)
        found = new = starts
        for _ in range(min(most - least, enough)):
            if not new:
                break
            name.step()
            new = body(name, new) & ~found
            found |= new
        return found
    return ends


def _ahead(body: _Node, wanted: bool) -> _Node:
    return lambda name, starts: sum(1 << at for at in range(len(name.text) + 1)
                                    if starts >> at & 1 and bool(body(name, 1 << at)) == wanted)


def _at_word_edge(text: str, at: int) -> bool:
    before, behind = (bool(re.match(r"\w", text[place:place + 1])) if place >= 0 else False for place in (at - 1, at))
    return before != behind


_EDGES: dict[str, _Node] = {
    "^": _places(lambda text, at: at == 0),
    r"\A": _places(lambda text, at: at == 0),
    "$": _places(lambda text, at: text[at:] in ("", "\n")),
    r"\Z": _places(lambda text, at: at == len(text)),
    r"\b": _places(_at_word_edge),
    r"\B": _places(lambda text, at: bool(text) and not _at_word_edge(text, at)),
}


class _Parser:
    """Text that `re` has compiled already, so that only what is unknown here can be wrong with it."""

    def __init__(self, text: str) -> None:
        self._flags = re.IGNORECASE if text.startswith("(?i)") else re.RegexFlag(0)
        self._text = text.removeprefix("(?i)")
        self._at = self._depth = 0

    def parse(self) -> _Node:
        return self._branches()

    def _branches(self) -> _Node:
        branches = [self._parts()]
        while self._text.startswith("|", self._at):
            self._at += 1
            branches.append(self._parts())
        return _either(branches)

    def _parts(self) -> _Node:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeats(self._atom()))
        return _sequence(parts)

    def _repeats(self, body: _Node) -> _Node:
        found = _REPEAT.match(self._text, self._at)
        if found is None:
            return body
        self._at = found.end()
        if self._text.startswith("+", self._at):
            raise _Unknown("possessive repetition")
        if self._text.startswith("?", self._at):  # lazy: the same matches, found in another order
            self._at += 1
        if found[1]:
            least, most = {"*": (0, _ENDLESS), "+": (1, _ENDLESS), "?": (0, 1)}[found[1]]
        else:
            least = int(found[2] or 0)
            most = least if not found[3] else int(found[4]) if found[4] else _ENDLESS
        return _repeated(body, least, most)

    def _atom(self) -> _Node:
        char = self._text[self._at]
        if char == "(":
            return self._group()
        if char == "[":
            return self._taken(self._class_end())
        escape = _ESCAPE.match(self._text, self._at) if char == "\\" else None
        if char == "\\" and escape is None:
            raise _Unknown("a backreference, or an escape that is not known")
        token = escape[0] if escape else char
        if token in _EDGES:
            self._at += len(token)
            return _EDGES[token]
        if token != "." and escape is None:
            self._at += 1
            return _char(re.compile(re.escape(token), self._flags))
        return self._taken(self._at + len(token))

    def _taken(self, end: int) -> _Node:
        """One character, by the piece of the pattern up to `end`."""
        piece = self._text[self._at:end]
        self._at = end
        return _char(re.compile(piece, self._flags))

    def _class_end(self) -> int:
        at = self._at + 1 + self._text.startswith("^", self._at + 1)
        at += 1 if self._text.startswith("]", at) else 0
        while self._text[at] != "]":
            at += 2 if self._text[at] == "\\" else 1
        return at + 1

    def _group(self) -> _Node:
        found = _GROUP.match(self._text, self._at)
        if found is None:
            raise _Unknown("a group such as (?" + self._text[self._at + 2:self._at + 4])
        self._at = found.end()
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _Unknown(f"more than {_DEEPEST} groups inside each other")
        body = self._branches()
        self._depth -= 1
        self._at += 1
        return body if found[1] is None else _ahead(body, found[1] == "?=")


@functools.lru_cache(64)
def _parsed(pattern: str) -> _Node:
    return _Parser(pattern).parse()


def check_pattern(what: str, pattern: str) -> None:
    """Raises TpecError unless `pattern` is a regular expression that `matches` knows; `what` names it."""
    if len(pattern) > LONGEST_PATTERN:
        raise TpecError(f"The {what} pattern has {len(pattern)} characters: shorten it to {LONGEST_PATTERN} at most.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
        _parsed(pattern)
    except _Unknown as error:
        raise TpecError(f"The {what} pattern '{pattern}' has {error}, which could take for ever: write it "
                        "without.") from None
    except (re.error, OverflowError, RecursionError) as error:
        raise TpecError(f"The {what} pattern '{pattern}' is not a regular expression ({error}): correct it.") from None


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern`, checked before, matches somewhere in `name`. Raises TpecError when that takes too long."""
    if len(name) > LONGEST_NAME:
        return False
    return bool(_parsed(pattern)(_Name(name), (2 << len(name)) - 1))
