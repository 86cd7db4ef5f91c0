"""The report as a web page: all in one file, and nothing that a stranger wrote becomes part of its markup."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpec.errors import TpecError
from tpec.page.page import page, write_page
from tpec.run.report import KeptLayer, LayerReport, Report

LAYER = LayerReport("double_blocks.0.img_attn.qkv", (4, 8), 0.5, 0.02, 0.025, 0.0002, 0.0008, 0, "activation", 0, 1.5,
                    1e-3, 1e-7)
KEPT = KeptLayer("final_layer.linear", (4, 8), "Output projection, sensitive")
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>&amp;'
_VOID = {"meta"}


def report(*layers: LayerReport, kept: tuple[KeptLayer, ...] = (KEPT,), **more: object) -> Report:
    plain = Report("m.safetensors", Path("/some/folder/q.safetensors"), "diffusion_models", "flux", "Flux: seen",
                   {"method": "tpec"}, layers or (LAYER,), 7, 0, 1000, 520, 2.0, "cpu",
                   {"read": 1.0, "compute": 1.0, "write": 0.5})
    return replace(plain, kept_layers=kept, **more)


class Elements(HTMLParser):
    """Tags in order, all attributes, and text; raises where an element is not closed by its own end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_tells_what_was_done() -> None:
    second = replace(LAYER, name="single_blocks.3.linear1", loss=0.0006)
    found = Elements(page(report(LAYER, second, calibration="made with 3 runs", notes=("cuda:0 ran out of memory",))))
    told = (report(LAYER, second).headline(), LAYER.name, second.name, KEPT.name, KEPT.reason,
            "made with 3 runs", "Cuda:0 ran out of memory", "52 %", "m.safetensors", "q.safetensors")
    for words in told:
        assert words in found.text.replace("\xa0", " "), words
    assert "/some/folder" not in found.text, "a page is shared: it names no folders"


def test_page_loads_nothing() -> None:
    found = Elements(page(report()))
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name in ("src", "href", "srcset") or name.startswith("on")]
    text = page(report())
    assert not re.search(r"url\(|@import|https?:", text)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in found.attributes


def test_hostile_names_stay_text() -> None:
    plain = Elements(page(report()))
    layer, kept = replace(LAYER, name=HOSTILE, metric=HOSTILE), KeptLayer(HOSTILE + "2", (4, 8), HOSTILE)
    found = Elements(page(report(layer, kept=(kept,), source=HOSTILE, why=HOSTILE, family=HOSTILE, device=HOSTILE,
                                 settings={"method": HOSTILE, HOSTILE: HOSTILE}, notes=(HOSTILE,),
                                 calibration=HOSTILE)))
    assert HOSTILE in found.text
    assert set(found.tags) <= set(plain.tags)
    assert {name for name, _ in found.attributes} <= {name for name, _ in plain.attributes}


@given(name=st.text(max_size=60), reason=st.text(max_size=60))
def test_any_name_gives_a_page(name: str, reason: str) -> None:
    Elements(page(report(replace(LAYER, name=name), kept=(KeptLayer(name, (1, 1), reason),)))).text.encode()


@pytest.mark.parametrize("layers", [(replace(LAYER, loss=0.0, nearest_loss=0.0, relative_error=0.0),),
                                    (replace(LAYER, loss=-1e-12),)])
def test_layers_without_an_error(layers: tuple[LayerReport, ...]) -> None:
    assert "nan" not in page(report(*layers)).lower()


def test_nothing_kept_and_nothing_quantized() -> None:
    assert "all Linear weights are in FP8" in Elements(page(report(kept=()))).text
    Elements(page(replace(report(), layers=())))


def test_millions_of_characters_are_shortened() -> None:
    assert len(page(report(replace(LAYER, name="a" * 1_000_000)))) < 100_000


def test_page_is_written_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("before")
    write_page(path, report())
    assert path.read_text("utf-8") == page(report())
    assert [found.name for found in tmp_path.iterdir()] == ["r.html"]
    with pytest.raises(TpecError):
        write_page(tmp_path / "none" / "r.html", report())
