"""Figures as files: the same bytes every time, text that stays text, names that are no markup."""

import math
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree

from feddpa_jax.evaluate.interval import Interval
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.report import figures
from feddpa_jax.report.plot_style import COLOURS, fitted, inline, text_width, to_pdf, to_svg

NAMES = [
    "$x^2$ and $",  # no mathematics
    r"\frac{a}{b} %s {0} _x",
    "<script>alert('1')</script> &amp; \"q\"",
    "a\x1b[31m\x00\x07\u2028\u202eb\ud800\ufffe",
    "Grüße 日本語 \U0001f600 עברית",
    "two\nlines\tand a tab",
    'style="fill: #0062a3; x" #0062a3',
    "",
]
SVG = "{http://www.w3.org/2000/svg}"


def drawn(names=NAMES):
    rows = [
        figures.Row(name, k == 0, (Interval(k, k - 0.5, k + 0.5),) * 2)
        for k, name in enumerate(names)
    ]
    return figures.intervals("<title> $t$", ["P", "$TTP$"], rows, METRICS["exact_match"])


def told(svg: str) -> list[str]:
    root = xml.etree.ElementTree.fromstring(svg)
    return [e.text or "" for e in root.iter() if e.tag.removeprefix(SVG) == "text"]


def test_names_are_text(recwarn):
    svg = to_svg(drawn())
    found = told(svg)
    for name in ("$x^2$ and $", r"\frac{a}{b} %s {0} _x", "$TTP$", "a␛[31m␀␇␤�b��"):
        assert name in found
    assert "two␊lines␉and a tab" in found
    assert "Grüße 日本語 \U0001f600 עברית" in found
    assert any(name.startswith("<script>alert('1')</script>") for name in found)
    assert "<script" not in svg
    root = xml.etree.ElementTree.fromstring(svg)
    assert root[0].tag == f"{SVG}title" and root[0].text == "<title> $t$"
    assert {e.tag.removeprefix(SVG) for e in root.iter()} <= {
        *("svg", "title", "g", "defs", "path", "use", "text")
    }
    assert not [str(w.message) for w in recwarn if "Glyph" in str(w.message)]


def test_the_same_bytes_in_another_process():
    code = (
        "from tests.report.test_plot_style import *; import hashlib; f = drawn(); "
        "print(hashlib.sha256(to_svg(f).encode() + to_pdf(f)).hexdigest())"
    )
    found = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": ".",
                "HOME": "/tmp",
                "SOURCE_DATE_EPOCH": at,
            },
        ).stdout
        for seed, at in (("1", "1000000"), ("2", "2000000"))
    ]
    assert found[0] == found[1] and len(found[0]) == 65
    assert to_svg(drawn()) == to_svg(drawn())


def test_pdf(recwarn):
    made = to_pdf(drawn())
    assert made.startswith(b"%PDF") and b"CreationDate" not in made
    assert not [str(w.message) for w in recwarn if "Glyph" in str(w.message)]


def test_a_file_has_no_date_and_reaches_nowhere():
    svg = to_svg(drawn(["a", "b"]))
    for word in ("metadata", "<!DOCTYPE", "url(", "clip-path", "matplotlib", "<style"):
        assert word not in svg
    assert set(svg.split('"')) >= {"http://www.w3.org/2000/svg"}
    assert svg.count("http") == 2  # SVG's own name, and that of its links


def test_in_a_page_colours_are_variables_and_ids_its_own():
    svg = to_svg(drawn())
    shown = inline(svg, "f7-")
    root = xml.etree.ElementTree.fromstring(shown)
    styles = " ".join(e.get("style", "") for e in root.iter())
    for name, colour in COLOURS.items():
        assert colour not in styles
        if name in ("ink", "rule", "c0"):
            assert f"var(--{name})" in styles
    assert "font-family" not in styles and "xmlns" not in shown
    assert told(shown) == told(svg)  # a name that looks like a style stays as it is
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    links = {e.get("href") for e in root.iter() if e.get("href")}
    assert ids and all(str(one).startswith("f7-") for one in ids)
    assert {f"#{one}" for one in ids} == links


def test_names_are_cut_to_the_room_that_they_have():
    for name in ("short", "W" * 40, "日" * 40, "i" * 200, "e\u0301" * 40):
        cut = fitted(name, 100, 12)
        assert text_width(cut, 12) <= 100 and (cut == name or cut.endswith("…"))
        assert unicodedata.is_normalized("NFC", cut) == unicodedata.is_normalized("NFC", name)
    assert fitted("short", 100, 12) == "short"
    # Wider than the font's own measures, so that no browser's font is cut.
    assert text_width("日" * 10, 12) >= 120 and text_width("feddpa_t instance", 12) >= 100
    assert math.isclose(text_width("ab", 12, bold=True), 1.1 * text_width("ab", 12))


def test_a_notebook_shows_a_figure():
    figure = drawn(["a", "b"])
    assert figure._repr_svg_() == to_svg(figure)
