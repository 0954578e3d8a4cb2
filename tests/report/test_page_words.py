"""The page's words and numbers: what runs scored, what they are compared by, what is missing."""

import json
import math

import pytest

from feddpa_jax.evaluate.interval import Estimate
from feddpa_jax.report.content import read_runs
from feddpa_jax.report.page import Page, make_page
from feddpa_jax.report.run_figures import Drawing
from tests.report.conftest import estimate, interval
from tests.report.parsed_page import Parsed, cards, page_of


@pytest.fixture
def without_figures(monkeypatch) -> None:
    """For tests of a page's words: drawing takes nearly all of its time."""

    def figure(page: Page, drawing: Drawing) -> list:
        page.drawings.append(drawing)
        return []

    monkeypatch.setattr(Page, "figure", figure)


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
