"""The page, its tables, and what a browser makes of it."""

import csv
import html
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree

import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.report.content import read_runs
from feddpa_jax.report.page import make_page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
HOSTILE = '<script>alert("x")</script>'


def tables(folder, name: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO((folder / f"{name}.csv").read_text())))


def test_page_and_tables(make_run, tmp_path, capsys):
    folder, out = make_run("one"), tmp_path / "out" / "page.html"
    assert main(["report", str(folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"report: {out}\n")
    rows = tables(tmp_path / "out" / "page_tables", "scores_nll")
    assert rows[0] == ["run", "mode", "P: own task", "TTP: all tasks"]
    assert rows[3] == ["feddpa_f", "local", "3.00 [2.88, 3.38]", "3.50 [3.38, 3.88]"]
    training = tables(tmp_path / "out" / "page_tables", "training")
    assert training[1] == ["feddpa_f", "3", "3,030", "81", "9", "337", "3.00", "0.75"]
    markdown = (tmp_path / "out" / "page_tables" / "scores_nll.md").read_text().splitlines()
    assert markdown[:2] == [
        "| run | mode | P: own task | TTP: all tasks |",
        "| --- | --- | ---: | ---: |",
    ]
    assert markdown[4] == "| feddpa_f | local | 3.00 [2.88, 3.38] | 3.50 [3.38, 3.88] |"
    latex = (tmp_path / "out" / "page_tables" / "rules_feddpa_f.tex").read_text()
    assert r"bound: \textless{}b\textgreater{}" in latex
    assert latex.count("&") == latex.count(r" \\") * 15


def test_targets_without_words_are_told_beside_rouge(make_run):
    one, two = make_run("a"), make_run("b", method="fedit")
    assert "no word" not in make_page(read_runs([one, two]))[0]
    file = two / "eval" / "summary.json"
    content = json.loads(file.read_text()) | {"targets_without_words": 2}
    file.write_text(json.dumps(content))
    page, _ = make_page(read_runs([one, two]))
    assert page.count("fedit: 2 test targets have no word, only punctuation: ROUGE-1 is 0") == 1
    assert page.count("no word") == 1


def test_what_is_said_of_comparisons(make_run):
    one, two = make_run("a"), make_run("b", method="fedit")
    page, _ = make_page(read_runs([one, two]))
    assert "Evaluated on 6 test instances." in page
    assert "Not set against" not in page
    assert "Chosen by response NLL and exact match on 16 held-out examples" in page
    assert "response NLL 0.020 in P and 0.010 in TTP; exact match 3.5 in P and 2.5 in TTP" in page
    file = two / "eval" / "instances.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if json.loads(line)["index"] < 5))
    page, parts = make_page(read_runs([one, two]))
    assert "unequal numbers of test instances, so compare with care: feddpa_f 6, fedit 5." in page
    assert "Not set against feddpa_f: fedit." in page
    assert "differences_of_scores" not in [table.name for table in parts.tables]


def test_plots_stand_alone(make_run, tmp_path):
    """Every plot of the page is a file too, whole XML that brings its own style."""
    assert main(["report", str(make_run("one")), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    files = sorted((tmp_path / "page_figures").iterdir())
    assert len(files) == page.count("<svg ")
    assert {"scores_nll.svg", "rules_feddpa_f.svg", "weights.svg"} <= {f.name for f in files}
    for file in files:
        root = xml.etree.ElementTree.fromstring(file.read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        (style,) = root.findall("{*}style")
        assert "--c0: #0062a3" in (style.text or "") and ".s5 {" in (style.text or "")
        assert root.findall(".//{*}text")


def test_what_comes_from_data_is_escaped(make_run):
    page, _ = make_page(read_runs([make_run("one")]))
    assert HOSTILE not in page
    assert html.escape(HOSTILE[:19])[:20] in page
    assert "<script" not in page
    assert "<i>tiny" not in page
    assert "<1>" not in page


def test_nothing_is_fetched_and_nothing_runs(make_run):
    page, _ = make_page(read_runs([make_run("one")]))
    assert "default-src 'none'" in page
    assert set(re.findall(r'(?:src|href)="([^"#]*)', page)) == {""}
    for word in (
        "url(",
        "@import",
        "<script",
        "<iframe",
        "<img",
        "<link",
        "http:",
        "https:",
        " on",
    ):
        assert not re.search(re.escape(word) + (r"\w+=" if word == " on" else ""), page), word


def test_the_same_runs_make_the_same_bytes(make_run):
    folders = [make_run("one"), make_run("two", method="feddpa_t")]
    pages = [make_page(read_runs(folders))[0] for _ in range(2)]
    assert pages[0] == pages[1]
    assert "Where the configurations differ" in pages[0]


def test_what_is_missing_names_its_command(make_run):
    folder = make_run("one", evaluated=False, weighed=False)
    page, _ = make_page(read_runs([folder]))
    assert f"feddpa eval --run-dir {folder}" in page
    assert "train with <code>--data.validation 16</code>" in page
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("path: sample", "path: sample, validation: 4"))
    page, _ = make_page(read_runs([folder]))
    assert f"feddpa weigh --run-dir {folder}" in page
    assert "Training loss in the global phase" in page


def test_scores_tell_their_settings_and_their_round(make_run):
    """They may be of other settings than training was given, and of an earlier round."""
    folder = make_run("one")
    assert "scores are of round" not in make_page(read_runs([folder]))[0]
    file = folder / "eval" / "summary.json"
    content = {"round": 1, "weighting": {"rule": "pearson"}, "decoding": {"beams": 3}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **content}))
    (run,) = read_runs([folder])
    assert run.config["weighting.rule"] == "pearson" and run.config["eval.beams"] == 3
    page, _ = make_page([run])
    assert "scores are of round 1, the run is at round 2 (from 0)" in page


def test_mistakes(make_run, tmp_path, capsys):
    folder = str(make_run("one"))
    for command, words in (
        ([folder, "--out", str(tmp_path)], ["--out", "report.html"]),
        ([folder, "--out", "x.pdf"], ["--out", "x.pdf"]),
        ([str(tmp_path / "none"), "--out", "x.html"], ["none", "holds no run"]),
        (
            [folder, "--out", f"{folder}/config.yaml/x.html"],
            ["x.html", "a part of the path is a file"],
        ),
        ([folder, "--out", "x.html", "--seed", "1"], ["--seed"]),
    ):
        assert main(["report", *command]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for word in words:
            assert word in error


MEASURE = """<!doctype html><title>-</title><iframe id="f" width="{width}" height="900"
 style="border:0" src="{page}"></iframe><script>
document.getElementById("f").onload = () => {{
  const page = document.getElementById("f").contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(one => one.open = true);
  const wide = [...page.querySelectorAll("body *")].filter(one => !one.closest(".scroll")
    && one.getBoundingClientRect().right > root.clientWidth + 1).map(one => one.tagName);
  document.title = JSON.stringify({{scroll: root.scrollWidth, width: root.clientWidth, wide,
    figures: page.querySelectorAll("svg").length}});
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
    """Nothing is refused by the page's own policy, nothing overflows, and it prints."""
    page = tmp_path / "page.html"
    folders = [make_run("one"), make_run("two" * 30), make_run("three", method="feddpa_t")]
    page.write_text(make_page(read_runs(folders))[0], encoding="utf-8")
    for width in (1280, 360):
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
        assert found["wide"] == []
        for word in ("Refused", "Content Security Policy", "Uncaught"):
            assert word not in shown.stderr
    pdf = tmp_path / "page.pdf"
    browse(f"--print-to-pdf={pdf}", page.as_uri())
    assert pdf.read_bytes().startswith(b"%PDF")
