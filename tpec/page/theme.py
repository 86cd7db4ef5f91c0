"""The colours of a report, dark and light, for pictures and pages alike."""

from typing import NamedTuple


class Theme(NamedTuple):
    """Colours as '#rrggbb': background, text, quiet text, lines, the reference, the result, and what stands out."""

    paper: str
    ink: str
    quiet: str
    grid: str
    plain: str
    result: str
    mark: str


THEMES = {
    "dark": Theme("#17181c", "#e8eaed", "#9aa0a6", "#2d3036", "#565d6b", "#4cc2ff", "#ffb454"),
    "light": Theme("#ffffff", "#1f2328", "#6b7280", "#e5e7eb", "#c3ccd8", "#0072b2", "#c2410c"),
}
