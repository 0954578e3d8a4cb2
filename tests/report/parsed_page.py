"""A page of runs, and its parts as a reader sees them."""

import html
import html.parser
import re
from pathlib import Path

from feddpa_jax.report.content import read_runs
from feddpa_jax.report.page import make_page


class Parsed(html.parser.HTMLParser):
    """A page's headings, rows of tables, cards and captions, in order."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("h1", "h2", "h3", "figcaption", "b", "caption", "svg", "summary"):
            self.found.append((tag, ""))

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.found and self._open and self._open[-1] == self.found[-1][0]:
            self.found[-1] = (self._open[-1], self.found[-1][1] + data)

    def all(self, tag: str) -> list[str]:
        return [text for kind, text in self.found if kind == tag]


def page_of(*folders: Path) -> str:
    return make_page(read_runs(folders)).html


def cards(page: str) -> list[tuple[str, str, str]]:
    found = []
    for heading, body in re.findall(
        r'<div class="card"><h3>(.*?) <small>.*?</h3><div>(.*?)</div>', page
    ):
        for measure, value, whose in re.findall(
            r"<p><span>(.*?)</span><b>(.*?)</b><span>(.*?)</span></p>", body
        ):
            found.append((f"{measure}, {heading}", value, whose))
    return found
