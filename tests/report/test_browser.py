"""What a browser makes of the page: nothing overflows, is cut or refused."""

import html
import html.parser
import json
import re
import shutil
import subprocess

import pytest

from tests.report.parsed_page import page_of

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


MEASURE = """<!doctype html><title>-</title><iframe id="f" width="{width}" height="900"
 style="border:0" src="{page}"></iframe><script>
document.getElementById("f").onload = () => {{
  const page = document.getElementById("f").contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(one => one.open = true);
  // The widest tables scroll within themselves where they are tables.
  const wide = [...page.querySelectorAll("body *")].filter(one => !one.closest("svg")
    && !(root.clientWidth > 700 && one.closest(".scroll table"))
    && one.getBoundingClientRect().right > root.clientWidth + 1).map(one => one.tagName);
  const shown = [...page.querySelectorAll("svg")].filter(one => one.getBoundingClientRect().width);
  const column = page.querySelector("section").clientWidth;
  const first = shown[0].getBoundingClientRect();
  const cut = shown.flatMap(svg => [...svg.querySelectorAll("text")].filter(text => {{
    const box = text.getBoundingClientRect(), all = svg.getBoundingClientRect();
    return box.left < all.left - 1 || box.right > all.right + 1 || box.top < all.top - 1
      || box.bottom > all.bottom + 1; }}).map(text => text.textContent));
  const small = shown.flatMap(svg => [...svg.querySelectorAll("text")].filter(text =>
    parseFloat(getComputedStyle(text).fontSize) * svg.getScreenCTM().a < 8)).length;
  const panels = [...shown[1].querySelectorAll("text")].filter(text =>
    /^T?T?P: /.test(text.textContent)).map(text => text.getBoundingClientRect());
  document.title = JSON.stringify({{scroll: root.scrollWidth, width: root.clientWidth, wide, cut,
    small, figures: shown.length, share: first.width / column,
    stacked: panels[1].top > panels[0].bottom, beside: panels[1].left > panels[0].right}});
}};</script>"""


def browse(*arguments: str) -> subprocess.CompletedProcess:
    assert BROWSER is not None
    quiet = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    return subprocess.run(
        [BROWSER, *quiet, "--enable-logging=stderr", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here; .ci/run installs one")
def test_in_a_browser(make_run, tmp_path):
    """Nothing is refused by the page's own policy, overflows, or is cut or too small; it prints.

    Figures take the column's width; on a phone P and TTP stand below each other.
    """
    page = tmp_path / "page.html"
    folders = [make_run("one"), make_run("two" * 30), make_run("three", method="feddpa_t")]
    page.write_text(page_of(*folders), encoding="utf-8")
    for width in (1280, 390, 360):
        (tmp_path / "measure.html").write_text(MEASURE.format(width=width, page=page.as_uri()))
        shown = browse(
            "--allow-file-access-from-files",
            "--virtual-time-budget=5000",
            "--dump-dom",
            (tmp_path / "measure.html").as_uri(),
        )
        found = json.loads(html.unescape(re.findall("<title>(.*?)</title>", shown.stdout)[0]))
        assert found["figures"] > 10
        assert width - 20 < found["width"] <= width  # a scroll bar may stand beside it
        assert found["scroll"] <= found["width"], found
        assert found["wide"] == [] and found["cut"] == [] and found["small"] == 0
        assert found["share"] > 0.99
        assert (found["stacked"], found["beside"]) == (
            (False, True) if width > 700 else (True, False)
        )
        for word in ("Refused", "Content Security Policy", "Uncaught"):
            assert word not in shown.stderr
    pdf = tmp_path / "page.pdf"
    browse(f"--print-to-pdf={pdf}", page.as_uri())
    assert pdf.read_bytes().startswith(b"%PDF")
