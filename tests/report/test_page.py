"""The page and what lies beside it: figures, tables, names that are escaped, the same bytes."""

import csv
import html
import html.parser
import io
import re
import time
import xml.etree.ElementTree

import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.report import write_report
from feddpa_jax.report.content import read_runs
from feddpa_jax.report.page import Page, make_page
from tests.report.conftest import HOSTILE as NAMES
from tests.report.conftest import write_run
from tests.report.parsed_page import Parsed

HEADINGS = ("P: own task", "TTP: all tasks")

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    """The page of one run."""
    return make_page(read_runs([write_run(tmp_path_factory.mktemp("page"), "one")]))


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


def test_names_of_clients_are_there(page):
    texts = [html.unescape(t) for t in re.findall(r"<text [^>]*>([^<]*)</text>", page.html)]
    for name in NAMES[1:]:
        assert name in texts
    assert any(name.startswith("<script>ale") for name in texts)
