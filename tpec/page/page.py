"""The report of a run as one web page that holds all it needs: no script, nothing loaded from elsewhere."""

from collections.abc import Iterable
from pathlib import Path

from ..files.replace import write_text
from ..run.report import KeptLayer, LayerReport, Report
from ..version import __version__
from .chart import legend, pair_bar, percent, section_chart
from .markup import Markup, element, join
from .overview import METRICS, WORST, Section, metrics, sections, size, top_of
from .style import STYLE

#: Browsers keep to it, whatever the page might hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
#: Kept layers whose names are shown without a click.
_UNFOLDED = 16
_NO_CALIBRATION = "None: layers were rounded by their weights alone. With one the error becomes much smaller."


def write_page(path: Path, report: Report) -> None:
    """Write `page` as `path`, all of it or nothing. Raises TpecError when it cannot be written."""
    write_text(path, page(report))


def page(report: Report) -> str:
    """The whole document."""
    parts, top = sections(report), top_of(report)
    head = element("head", element("meta", charset="utf-8"),
                   element("meta", **{"http-equiv": "Content-Security-Policy"}, content=_POLICY),
                   element("meta", name="viewport", content="width=device-width, initial-scale=1"),
                   element("title", f"{report.source} in FP8"), element("style", Markup(STYLE)))
    body = element("body", element("main", _opening(report), _notes(report), _layers(report, parts, top),
                                   element("div", _worst(report, top), _kept(report), class_="columns two"),
                                   element("div", _calibration(report), _settings(report), _run(report),
                                           class_="columns three"),
                                   _table(report, parts, top),
                                   element("footer", f"Written by TPEC FP8 {__version__}.")))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _opening(report: Report) -> Markup:
    before, after = report.source_nbytes, report.output_nbytes
    largest = max(before, after, 1)
    rows = [element("div", element("span", word),
                    element("div", element("i", class_=kind, style=f"width: {100 * nbytes / largest:.2f}%"),
                            class_="track"),
                    element("b", size(nbytes)), class_="row")
            for word, kind, nbytes in (("before", "plain", before), ("after", "result", after))]
    share = element("p", element("strong", f"{100 * after / max(before, 1):.0f} %"), " of the original's size")
    names = element("p", element("code", report.source), Markup(" &rarr; "), element("code", report.output.name),
                    class_="names")
    words = element("div", element("p", "Quantization report", class_="eyebrow"),
                    element("h1", _unbroken(report.headline())), names, element("p", report.why, class_="quiet"))
    return element("header", words, element("div", *rows, share, class_="sizes"))


def _unbroken(text: str) -> Markup:
    """`text` whose per cent signs stay with their numbers at the end of a line."""
    return Markup(join(text).replace(" %", "&nbsp;%"))


def _notes(report: Report) -> Markup:
    said = [*(("warning", text) for text in report.warnings()), *(("note", text) for text in report.notes)]
    if not said:
        return Markup()
    return element("ul", *(element("li", text[:1].upper() + text[1:], class_=kind) for kind, text in said),
                   class_="notes")


def _layers(report: Report, parts: Iterable[Section], top: float) -> Markup:
    about = ("The taller, the more rounding changed a layer: in % of its weights, each counted as much as it matters "
             "to what the layer puts out.")
    worst = report.worst(WORST)
    charts = [section_chart(part, top, worst) for part in parts]
    return element("section", element("h2", "What rounding did to each layer"), element("p", about, class_="quiet"),
                   legend(len(report.kept_layers)), element("div", *charts, class_="plots"))


def _worst(report: Report, top: float) -> Markup:
    items = [element("li", element("code", layer.name), pair_bar(layer, top),
                     element("span", element("b", percent(layer.error)), f" (plain {percent(layer.nearest_error)})"))
             for layer in report.worst(WORST)]
    return element("section", element("h2", "Largest errors"), element("ol", *items, class_="worst"))


def _kept(report: Report) -> Markup:
    reasons: dict[str, list[KeptLayer]] = {}
    for layer in report.kept_layers:
        reasons.setdefault(layer.reason, []).append(layer)
    # What is short enough to be seen at once is open.
    unfolded = {"open": ""} if len(report.kept_layers) <= _UNFOLDED else {}
    groups = [element("details", element("summary", reason[:1].upper() + reason[1:], " ",
                                         element("small", str(len(layers)))),
                      element("p", *_listed(layer.name for layer in layers)), **unfolded)
              for reason, layers in sorted(reasons.items(), key=lambda item: -len(item[1]))]
    if not groups:
        groups = [element("p", "No layer was: all Linear weights are in FP8.", class_="quiet")]
    return element("section", element("h2", "Kept in high precision"), element("div", *groups, class_="kept"))


def _listed(names: Iterable[str]) -> Iterable[Markup]:
    return (join(element("code", name), Markup(" ")) for name in names)


def _calibration(report: Report) -> Markup:
    statistics = [("Statistics", report.calibration or _NO_CALIBRATION)]
    facts = [] if report.settings.get("method") == "nearest" else statistics
    facts += [(f"{count} layers", words) for words, count in metrics(report.layers).items()]
    return element("section", element("h2", "Calibration"), _facts(facts))


def _settings(report: Report) -> Markup:
    return element("section", element("h2", "Settings"),
                   _facts((name.replace("_", " "), _value(value)) for name, value in report.settings.items()))


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _run(report: Report) -> Markup:
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.stages.items())
    tensors = f"{len(report.layers)} in FP8, {report.kept} kept" + (f", {report.dropped} dropped" if report.dropped
                                                                     else "")
    return element("section", element("h2", "Run"), _facts([
        ("time", f"{report.seconds:.1f} s on {report.device}"), ("busy", stages), ("tensors", tensors),
        ("layout", report.family), ("goes into", report.kind)]))


def _facts(facts: Iterable[tuple[str, str]]) -> Markup:
    return element("dl", *(join(element("dt", name), element("dd", text)) for name, text in facts))


def _table(report: Report, parts: Iterable[Section], top: float) -> Markup:
    names = ("layer", "", "error", "plain", "x plain", "shape", "scale", "rounded")
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in names)))
    groups = [element("tbody", element("tr", element("th", block.title, colspan=len(names), scope="rowgroup")),
                      *(_row(slot.layer, top) for slot in block.slots)) for part in parts for block in part.blocks]
    count = len(report.layers) + len(report.kept_layers)
    return element("details", element("summary", f"All {count} layers in numbers"),
                   element("div", element("table", head, *groups), class_="scroll"), class_="all")


def _row(layer: LayerReport | KeptLayer, top: float) -> Markup:
    name, shape = element("td", element("code", layer.name)), " x ".join(map(str, layer.shape))
    if isinstance(layer, KeptLayer):
        return element("tr", name, element("td", element("b", "kept"), f" {layer.reason}", colspan=4),
                       element("td", shape), element("td", colspan=2), class_="kept")
    cells = (percent(layer.error), percent(layer.nearest_error), f"{layer.error_ratio:.3f}", shape,
             f"{layer.scale:.4g}")
    return element("tr", name, element("td", pair_bar(layer, top)), *(element("td", cell) for cell in cells),
                   element("td", METRICS.get(layer.metric, layer.metric)))
