"""The page, what lies beside it, and what a browser makes of it."""

import csv
import html
import html.parser
import io
import json
import math
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree
from pathlib import Path

import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.evaluate.interval import Estimate
from feddpa_jax.report import write_report
from feddpa_jax.report.content import read_runs
from feddpa_jax.report.page import Page, make_page
from feddpa_jax.report.run_figures import Drawing
from tests.report.conftest import HOSTILE as NAMES
from tests.report.conftest import estimate, interval, write_run

HEADINGS = ("P: own task", "TTP: all tasks")

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
HOSTILE = '<script>alert("x")</script>'


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


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    """The page of one run."""
    return make_page(read_runs([write_run(tmp_path_factory.mktemp("page"), "one")]))


@pytest.fixture
def without_figures(monkeypatch) -> None:
    """For tests of a page's words: drawing takes nearly all of its time."""

    def figure(page: Page, drawing: Drawing) -> list:
        page.drawings.append(drawing)
        return []

    monkeypatch.setattr(Page, "figure", figure)


@pytest.fixture
def small_run(make_run) -> Path:
    """A run of one mode and one metric."""
    folder = make_run("small", weighed=False)
    file = folder / "eval" / "summary.json"
    content = json.loads(file.read_text())
    content["modes"] = {"instance": {"nll": content["modes"]["instance"]["nll"]}}
    file.write_text(json.dumps(content))
    return folder


@pytest.mark.usefixtures("without_figures")
def test_the_pages_numbers_are_the_runs(make_run):
    """Every P and TTP of summary.json, with its interval, stands in a table."""
    folder = make_run("one")
    summary = json.loads((folder / "eval" / "summary.json").read_text())
    rows = Parsed(page_of(folder)).rows
    for mode, by_metric in summary["modes"].items():
        told = [row[2:] for row in rows if row[:2] == ["feddpa_f", mode]]
        for metric, cells in zip(("rouge1", "exact_match", "nll"), told, strict=True):
            digits = 2 if metric == "nll" else 1
            expected = [estimate(by_metric[metric][z]["value"]).text(digits) for z in ("P", "TTP")]
            assert cells == expected


def test_the_first_figure_is_p_against_ttp(make_run, small_run):
    page = make_page(read_runs([make_run("one", method="fedit"), small_run]))
    assert page.drawings[0].name == "p_against_ttp_rouge1"
    before, _, rest = page.html.partition("<svg ")
    assert before.rstrip().endswith('<div class="scroll wide" tabindex="0">')
    assert rest.partition("<title>")[2].startswith("P against TTP by ROUGE-1<")
    assert "<table" not in before
    names = [drawing.name for drawing in page.drawings]
    for name in ("p_against_ttp_nll", "scores_nll", "differences_nll", "weights", "rules_fedit"):
        assert name in names
    assert len(names) == len(set(names)) == len(page.svgs)


def test_a_figure_is_there_for_the_column_and_for_a_phone(page):
    text = page.html
    wide, narrow = text.count('class="scroll wide"'), text.count('class="scroll narrow"')
    assert wide == narrow > 5
    assert text.count("<svg ") == 2 * wide + text.count('class="scroll "')
    widths = [float(w) / 0.75 for w in re.findall(r'<svg viewBox="0 0 ([\d.]+)', text)]
    assert {round(w) for w in widths} == {940, 400}


def test_page_and_tables(make_run, tmp_path, capsys):
    folder, out = make_run("one"), tmp_path / "out" / "page.html"
    assert main(["report", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"report: {out}"
    assert said[-2] == f"tables: {tmp_path}/out/page_tables; figures: {tmp_path}/out/page_figures"
    tables = tmp_path / "out" / "page_tables"
    rows = list(csv.DictReader(io.StringIO((tables / "scores_nll.csv").read_text())))
    assert rows[2] == {
        **{"run": "feddpa_f", "mode": "local", "P: own task": "3.0", "TTP: all tasks": "3.5"},
        **{"P: own task, over instances, low": "2.875", "P: own task, over clients, low": "2.75"},
        **{"P: own task, over instances, high": "3.375", "P: own task, over clients, high": "3.75"},
        **{"TTP: all tasks, over instances, low": "3.375"},
        **{"TTP: all tasks, over instances, high": "3.875"},
        **{
            "TTP: all tasks, over clients, low": "3.25",
            "TTP: all tasks, over clients, high": "4.25",
        },
        **{f"{heading}, over all, {end}": "" for heading in HEADINGS for end in ("low", "high")},
    }
    markdown = (tables / "scores_nll.md").read_text().splitlines()
    assert markdown[4] == (
        "| feddpa_f | local | 3.00 [2.88, 3.38] (2.75, 3.75) | 3.50 [3.38, 3.88] (3.25, 4.25) |"
    )
    latex = (tables / "rules_feddpa_f.tex").read_text()
    assert r"bound: \textless{}b\textgreater{}" in latex
    assert latex.count("&") == latex.count(r" \\") * 19


def test_write_report_is_silent(small_run, tmp_path, capsys):
    written = write_report([small_run], tmp_path / "page.html")
    assert written.page == tmp_path / "page.html" and written.page.is_file()
    assert written.tables.is_dir() and written.figures.is_dir()
    assert any("has no checksums" in line for line in written.warnings)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("without_figures")
def test_targets_without_words_are_told_beside_rouge(make_run):
    one, two = make_run("a"), make_run("b", method="fedit")
    assert "no word" not in page_of(one, two)
    file = two / "eval" / "summary.json"
    content = json.loads(file.read_text()) | {"targets_without_words": 2}
    file.write_text(json.dumps(content))
    page = page_of(one, two)
    assert page.count("fedit: 2 test targets have no word, only punctuation: ROUGE-1 is 0") == 1
    assert page.count("no word") == 1


@pytest.mark.usefixtures("without_figures")
def test_what_is_said_of_comparisons(make_run):
    one, two = make_run("a"), make_run("b", method="fedit")
    page = page_of(one, two)
    assert "Evaluated on 6 test instances." in page
    assert "Not set against" not in page
    assert "Chosen by response NLL and exact match on the pooled held-out examples" in page
    assert "response NLL 0.020 in P and 0.010 in TTP; exact match 3.5 in P and 2.5 in TTP" in page
    file = two / "eval" / "instances.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if json.loads(line)["index"] < 5))
    made = make_page(read_runs([one, two]))
    said = "unequal numbers of test instances, so compare with care: feddpa_f 6, fedit 5."
    assert said in " ".join(made.html.split())
    assert "Not set against feddpa_f: fedit." in made.html
    assert "differences_of_scores" not in [table.name for table in made.tables]
    assert "differences_nll" not in [drawing.name for drawing in made.drawings]


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


def test_a_metric_of_the_users_own(small_run):
    """Its file is not at hand where the page is made; summary.json tells its title."""
    file = small_run / "eval" / "summary.json"
    content = json.loads(file.read_text())
    by_metric = content["modes"]["instance"]
    by_metric["my.py:surplus"] = by_metric["nll"]
    told = {"title": "words too many", "digits": 3, "fine_digits": 3, "lower_is_better": True}
    file.write_text(json.dumps(content | {"metrics": {"my.py:surplus": told}}))
    page = make_page(read_runs([small_run]))
    assert ["feddpa_f", "instance", estimate(4).text(3), estimate(4.5).text(3)] in Parsed(
        page.html
    ).rows
    assert (
        "P, Words too many",
        "4.000",
        "3.875 to 4.375 over test instances; instance mode",
    ) in cards(page.html)
    assert "p_against_ttp_my.py:surplus" in [drawing.name for drawing in page.drawings]


@pytest.mark.usefixtures("without_figures")
def test_main_numbers(make_run):
    assert cards(page_of(make_run("one"))) == [
        ("P, ROUGE-1", "33.0", "32.9 to 33.4 over test instances; instance mode"),
        ("TTP, ROUGE-1", "33.5", "33.4 to 33.9 over test instances; instance mode"),
        ("P, Exact match, %", "26.0", "25.9 to 26.4 over test instances; instance mode"),
        ("TTP, Exact match, %", "26.5", "26.4 to 26.9 over test instances; instance mode"),
        ("P, Response NLL, nats", "4.00", "3.88 to 4.38 over test instances; instance mode"),
        ("TTP, Response NLL, nats", "4.50", "4.38 to 4.88 over test instances; instance mode"),
    ]


@pytest.mark.usefixtures("without_figures")
def test_the_best_of_several_runs(make_run):
    one, two = make_run("one"), make_run("two", method="fedit")
    file = two / "eval" / "summary.json"
    content = json.loads(file.read_text())
    for metric, by in (("nll", 0.5), ("exact_match", 1.0)):
        for measure in ("P", "TTP"):
            found = content["modes"]["instance"][metric]
            found[measure] = interval(found[measure]["value"] + by)
    file.write_text(json.dumps(content))
    found = cards(page_of(one, two))
    best = {title: (value, whose.rpartition("best: ")[2]) for title, value, whose in found}
    # The second has the greater exact match, which is better, and the greater NLL, which is worse.
    assert best["P, Exact match, %"] == ("27.0", "fedit")
    assert best["TTP, Exact match, %"] == ("27.5", "fedit")
    assert best["P, Response NLL, nats"] == ("4.00", "feddpa_f")
    assert best["TTP, Response NLL, nats"] == ("4.50", "feddpa_f")


def test_figures_stand_alone(make_run, tmp_path):
    """Every figure of the page is a file too, whole XML that needs no style sheet."""
    written = write_report([make_run("one")], tmp_path / "page.html")
    files = sorted(written.figures.iterdir())
    page = written.page.read_text()
    assert len(files) == len(Parsed(page).all("figcaption"))
    assert {"scores_nll.svg", "rules_feddpa_f.svg", "weights.svg"} <= {f.name for f in files}
    for file in files:
        root = xml.etree.ElementTree.fromstring(file.read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in file.read_text() and "fill: #" in file.read_text()
        assert root.findall(".//{*}text")


def test_figures_for_paper(small_run, tmp_path, capsys):
    plots = tmp_path / "deep" / "figures"
    command = [
        "report",
        str(small_run),
        "--out",
        str(tmp_path / "page.html"),
        "--figures",
        str(plots),
    ]
    assert main(command) == 0
    assert f"figures: {plots}" in capsys.readouterr().out
    names = {file.stem for file in plots.iterdir()}
    assert {file.name for file in plots.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "pdf")
    }
    assert "p_against_ttp_nll" in names and not (tmp_path / "page_figures").exists()
    size = xml.etree.ElementTree.fromstring((plots / "p_against_ttp_nll.svg").read_text())
    assert size.get("width") == "510pt"  # 7.1 inches
    assert (plots / "weights.pdf").read_bytes().startswith(b"%PDF")
    once = {file.name: file.read_bytes() for file in plots.iterdir()}
    assert main(command) == 0
    assert {file.name: file.read_bytes() for file in plots.iterdir()} == once


def test_what_comes_from_data_is_escaped(page):
    text = page.html
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(" in text
    assert "<script" not in text
    assert "<i>tiny" not in text
    assert "<1>" not in text


def test_nothing_is_fetched_and_nothing_runs(page):
    text = page.html
    assert "default-src 'none'" in text
    linked = set(re.findall(r'(?:src|href)="([^"]*)', text))
    assert linked and all(link.startswith("#") for link in linked)
    for word in (
        *("url(", "@import", "<script", "<iframe", "<img", "<link", "http:", "https:", " on"),
        "xlink",
    ):
        assert not re.search(re.escape(word) + (r"\w+=" if word == " on" else ""), text), word


def test_the_ids_of_a_page_are_unique(page):
    text = page.html
    ids = re.findall(r' id="([^"]*)', text)
    assert len(ids) == len(set(ids)) > 20
    assert {link[1:] for link in re.findall(r'href="([^"]*)', text)} <= set(ids)


def test_the_same_runs_make_the_same_bytes(make_run, small_run, tmp_path):
    folders = [small_run, make_run("two", method="feddpa_t", evaluated=False)]
    found = []
    for out in (tmp_path / "a" / "page.html", tmp_path / "b" / "page.html"):
        written = write_report(folders, out)
        found.append({p.name: p.read_bytes() for p in sorted(out.parent.rglob("*")) if p.is_file()})
        assert written.page.name in found[-1]
    assert found[0] == found[1] and len(found[0]) > 20
    assert b"Where the configurations differ" in found[0]["page.html"]


def test_what_is_missing_names_its_command(make_run):
    folder = make_run("one", evaluated=False, weighed=False)
    page = page_of(folder)
    assert f"feddpa eval --run-dir {folder}" in page
    assert "train with <code>--data.validation 16</code>" in page
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("path: sample", "path: sample, validation: 4"))
    page = page_of(folder)
    assert f"feddpa weigh --run-dir {folder}" in page
    assert "Training loss in the global phase" in page


@pytest.mark.usefixtures("without_figures")
def test_scores_tell_their_settings_and_their_round(make_run):
    """They may be of other settings than training was given, and of an earlier round."""
    folder = make_run("one")
    assert "scores are of round" not in page_of(folder)
    file = folder / "eval" / "summary.json"
    content = {"round": 1, "weighting": {"rule": "pearson"}, "decoding": {"beams": 3}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **content}))
    (run,) = read_runs([folder])
    assert run.config["weighting.rule"] == "pearson" and run.config["eval.beams"] == 3
    assert "scores are of round 1, the run is at round 2 (from 0)" in make_page([run]).html


def test_a_run_without_own_tasks_in_the_tests(make_run):
    """There is no P then, and no figure of it."""
    folder = make_run("one")
    file = folder / "eval" / "summary.json"
    content = json.loads(file.read_text())
    for by_metric in content["modes"].values():
        for found in by_metric.values():
            found["P"] = Estimate.none(math.nan, "no client has an own task").to_json()
    file.write_text(json.dumps(content))
    page = make_page(read_runs([folder]))
    assert not any(drawing.name.startswith("p_against") for drawing in page.drawings)
    assert [row[2] for row in Parsed(page.html).rows if row[:2] == ["feddpa_f", "local"]] == [
        "–"
    ] * 3
    assert "nan" not in page.html.lower().replace("nano", "")


def test_mistakes(small_run, tmp_path, capsys):
    folder = str(small_run)
    for command, words in (
        ([folder, "--out", str(tmp_path)], ["--out", "report.html"]),
        ([folder, "--out", "x.pdf"], ["--out", "x.pdf"]),
        ([str(tmp_path / "none"), "--out", "x.html"], ["none", "holds no run"]),
        (
            [folder, "--out", f"{folder}/config.yaml/x.html"],
            ["x.html", "a part of the path is a file"],
        ),
        ([folder, "--out", "x.html", "--seed", "1"], ["--seed"]),
        (
            [folder, "--out", f"{tmp_path}/x.html", "--figures", f"{folder}/config.yaml"],
            ["config.yaml", "cannot be written"],
        ),
    ):
        assert main(["report", *command]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for word in words:
            assert word in error


def test_a_page_takes_no_more_than_seconds(make_run):
    """Of CPU time, for a run of five modes and three metrics; 2 s on an idle core."""
    runs = read_runs([make_run("one")])
    start = time.process_time()
    make_page(runs)
    assert time.process_time() - start < 10


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


def test_names_of_clients_are_there(page):
    texts = [html.unescape(t) for t in re.findall(r"<text [^>]*>([^<]*)</text>", page.html)]
    for name in NAMES[1:]:
        assert name in texts
    assert any(name.startswith("<script>ale") for name in texts)
