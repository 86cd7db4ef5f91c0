"""HTML and SVG elements in which every text is escaped, so that nothing from a stranger's file becomes markup."""

from html import escape

from ..errors import one_line
from .overview import shortened

#: Characters of one text; names can have millions in a hostile file.
LONGEST_TEXT = 2000
_VOID = frozenset({"meta"})


class Markup(str):
    """Text that is markup already."""


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """`<tag attribute="value">children</tag>`.

    Children that are not `Markup`, and all attributes' values, are escaped, shortened, and spelled out where they
    cannot be printed. An underscore at the end of an attribute's name is left out: `class_`.
    """
    fields = "".join(f' {name.rstrip("_")}="{_text(str(value))}"' for name, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{fields}>")
    return Markup(f"<{tag}{fields}>{join(*children)}</{tag}>")


def join(*children: str) -> Markup:
    """Children one after another, escaped as by `element`."""
    return Markup("".join(child if isinstance(child, Markup) else _text(child) for child in children))


def _text(text: str) -> str:
    return escape(one_line(shortened(text, LONGEST_TEXT)))
