"""The page, tables and files of a comparison, and what the terminal shows; from values alone."""

import csv
import dataclasses
import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from feddpa_jax.cli.comparison_table import render
from feddpa_jax.cli.console import Reporter
from feddpa_jax.comparison.compared import Comparison
from feddpa_jax.comparison.comparison_page import make_comparison_page
from feddpa_jax.comparison.comparison_tables import (
    common_settings,
    costs_table,
    differences_table,
    scores_table,
    seeds_table,
    settings_table,
)
from feddpa_jax.comparison.contender import Contender
from feddpa_jax.comparison.finished import FinishedRun, Scores
from feddpa_jax.comparison.work import Work
from feddpa_jax.config import Config
from feddpa_jax.evaluate.interval import Estimate
from feddpa_jax.evaluate.personalization import Tasks

CONFIG = Config(eval={"metrics": ["nll", "rouge1"]})
HOSTILE = "<script>.py:x&y"
EACH = 12
TASKS = Tasks(("a", "b"), np.repeat([0, 1], EACH), np.eye(2, dtype=bool)[[0, 1, 0, 1]])


def finished(contender: Contender, seed: int, level: float, tokens: int = 100) -> FinishedRun:
    """A run whose NLL is about `level`, plus 0.5 in the mode global; ROUGE-1 is ten times that."""
    noise = np.random.default_rng(seed).normal(0, 0.1, (4, 2 * EACH))
    nll = level + seed / 10 + noise
    by_mode = {
        "global": {"nll": nll + 0.5, "rouge1": 10 * nll + 5},
        "instance": {"nll": nll, "rouge1": 10 * nll},
    }
    instances = tuple(f"i{n}" for n in range(2 * EACH))
    scores = Scores(tuple("abcd"), instances, TASKS, "instance", by_mode)
    line = {"real_tokens": tokens, "seconds": 2.5, "updates": 6}
    line |= {"client_bytes_received": 3_000_000, "client_bytes_sent": 1_000_000}
    return FinishedRun(
        contender,
        contender.config(CONFIG, seed),
        scores,
        Work(2, tokens, 6),
        [line, line],
        Path("runs") / contender.folder / f"seed_{seed}",
    )


def comparison(seeds: tuple[int, ...] = (0, 1)) -> Comparison:
    first, second = Contender("fedit"), Contender("feddpa_t", {}, {"fed.local_weight": 0.25})
    runs = []
    for seed in seeds:
        runs += [finished(first, seed, 2.0), finished(second, seed, 1.5, tokens=150)]
    return Comparison(tuple(runs), against="fedit")


def cells(text: str) -> list[list[str]]:
    """The texts of a page's table cells, by row."""
    rows = re.findall(r"<tr.*?</tr>", text, re.DOTALL)
    return [[html.unescape(c) for c in re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", r)] for r in rows]


def test_tables():
    found = comparison()
    table = scores_table(found, "nll")
    assert table.headings() == [
        *("method", "mode", "P: own task", "± seeds", "TTP: all tasks", "± seeds"),
    ]
    assert [row[:2] for row in table.rows()] == [
        ("fedit", "instance *"),
        ("fedit", "global"),
        ("feddpa_t(fed.local_weight=0.25)", "instance *"),
        ("feddpa_t(fed.local_weight=0.25)", "global"),
    ]
    assert table.marked == {0, 2}
    minus = differences_table(found, "nll")
    assert minus is not None
    # The runs of a seed have the same noise: differences are the same everywhere, so that nothing
    # tells how far they may be off.
    assert [row[:2] for row in minus.rows()] == [row[:2] for row in table.rows()[1:]]
    assert minus.headings()[2:5] == ["P: own task", "± seeds", "P stands over"]
    assert [v.value for v in minus.columns[2].values] == pytest.approx([0.5, -0.5, 0.0])
    assert minus.columns[2].texts()[:2] == ["0.500 [–] (–)", "-0.500 [–] (–)"]
    assert minus.columns[3].values == pytest.approx([0, 0, 0], abs=1e-9)
    assert minus.columns[4].values[:2] == ["–"] * 2
    # Of ROUGE-1 the span is known: 3 * 100 / 24 is the least that an end is off.
    rouge = differences_table(found, "rouge1")
    assert rouge is not None
    assert rouge.columns[2].texts()[0] == "5.0 [-7.5, 17.5] (–)"
    costs = costs_table(found)
    assert costs.rows() == [
        ("fedit", "2", "12", "200", "5", "6.00", "2.00", "0", "0"),
        ("feddpa_t(fed.local_weight=0.25)", "2", "12", "300", "5", "6.00", "2.00", "0", "+50.0"),
    ]
    assert len(seeds_table(found).rows()) == 4
    assert seeds_table(found).rows()[1][-1] == "runs/fedit/seed_1"
    assert settings_table(found).rows() == [
        ("fed.method", "fedit", "feddpa_t"),
        ("fed.local_weight", "0.5", "0.25"),
    ]
    assert "fed.method" not in common_settings(found)
    assert common_settings(found)["lora.targets"] == "q_proj, v_proj"


def test_the_most_common_answer_has_a_row():
    """Where all seeds have the same, as it is; else a mean without an interval."""
    found = comparison()
    assert scores_table(found, "rouge1").rows()[-1][1] == "global"
    one = {m: Estimate.none(value, "12 instances") for m, value in (("P", 7.0), ("TTP", 8.0))}
    other = {m: Estimate.none(value, "12 instances") for m, value in (("P", 8.0), ("TTP", 8.5))}

    def told(run: FinishedRun, constant: dict) -> FinishedRun:
        scores = dataclasses.replace(run.scores, most_common={"rouge1": constant})
        return dataclasses.replace(run, scores=scores)

    same = dataclasses.replace(found, runs=tuple(told(run, one) for run in found.runs))
    table = scores_table(same, "rouge1")
    assert table.rows()[-1] == ("–", "most common answer", "7.0 [–] (–)", "", "8.0 [–] (–)", "")
    assert len(scores_table(same, "nll").rows()) == 4
    by_seed = (told(run, one if run.seed == 0 else other) for run in found.runs)
    unequal = dataclasses.replace(found, runs=tuple(by_seed))
    constant = unequal.most_common("rouge1")
    assert constant is not None and (constant["P"].value, constant["TTP"].value) == (7.5, 8.25)


def test_differences_that_stand_among_many_are_marked():
    """Five methods against one: one is better everywhere, one a little on P, the others not."""
    rng = np.random.default_rng(0)
    runs = [finished(Contender("fedit"), 0, 2.0)]
    for place, name in enumerate(("local", "ditto", "feddpa_f", "feddpa_t", "fedlora")):
        other = finished(Contender(name), 0, 2.0)
        better = 1.0 if place == 0 else 0.0
        by_mode = {
            mode: {"nll": own["nll"] - better + rng.normal(0, 0.3, (4, 2 * EACH))}
            for mode, own in other.scores.by_mode.items()
        }
        for mode, own in by_mode.items():
            own["rouge1"] = other.scores.by_mode[mode]["rouge1"]
        scores = dataclasses.replace(other.scores, by_mode={"instance": by_mode["instance"]})
        runs.append(dataclasses.replace(other, scores=scores))
    found = Comparison(tuple(runs), against="fedit")
    minus = differences_table(found, "nll")
    assert minus is not None
    places = {row[0]: row for row in minus.rows() if row[1] == "instance *"}
    p, ttp = minus.headings().index("P stands over"), minus.headings().index("TTP stands over")
    assert places["local"][p] == places["local"][ttp] == "instances, clients"
    assert {places[name][p] for name in ("ditto", "feddpa_f", "feddpa_t", "fedlora")} == {"–"}
    assert "for 12 differences" in " ".join(found.notes)
    out = io.StringIO()
    Reporter(Console(file=out, width=250)).show(render(found))
    assert "instances, clients" in out.getvalue()


def test_one_seed_has_no_interval_over_seeds_and_says_so():
    found = comparison(seeds=(3,))
    assert "± seeds" not in scores_table(found, "nll").headings()
    assert any("no interval over seeds" in note for note in found.notes)
    assert not any("±" in note for note in found.notes)
    assert found.rows[0].scores["nll"]["P"].over_seeds is None


def test_notes_say_which_interval_is_which():
    notes = " ".join(comparison().notes)
    assert "[ ]: 95 % interval over test instances, clients and seeds fixed. ( ): 95 %" in notes
    assert "for 6 differences (P and TTP of every row), at 95 %" in notes
    assert "No interval over clients: all clients have the same value." in notes
    assert "±: half of the 95 % t-interval over the 2 seeds (degrees of freedom: 1)" in notes
    assert "Minus fedit: difference to what it answers with, paired by seed, client" in notes
    assert "Equal updates: each method as configured, with the same rounds" in notes
    tokens = dataclasses.replace(comparison(), equal="tokens")
    assert "Equal tokens: each method has the number of rounds whose" in " ".join(tokens.notes)


def test_the_page_shows_every_table_and_note():
    found = comparison()
    page = make_comparison_page(found)
    text = html.unescape(page.html)
    for note in found.notes:
        assert note in text
    shown = cells(page.html)
    for table in page.tables:
        for row in table.rows():
            assert list(row) in shown, table.name
    assert [table.name for table in page.tables] == [
        *("scores_rouge1", "differences_rouge1", "scores_nll", "differences_nll"),
        *("costs", "seeds", "settings"),
    ]
    assert [drawing.name for drawing in page.drawings] == [
        f"{name}_{metric}"
        for metric in ("rouge1", "nll")
        for name in ("p_against_ttp", "scores", "differences")
    ]
    assert not re.findall(r'(?:src|href)="(?!#)', page.html)
    assert "<script" not in page.html


def test_names_are_text_whatever_they_hold():
    runs = [finished(Contender(HOSTILE), 0, 1.0), finished(Contender("fedit"), 0, 2.0)]
    found = Comparison(tuple(runs), against=HOSTILE)
    page = make_comparison_page(found).html
    assert "<script" not in page
    assert html.escape(HOSTILE) in page
    out = io.StringIO()
    Reporter(Console(file=out, width=200)).show(render(found))
    assert HOSTILE in out.getvalue()


def test_files(tmp_path: Path):
    found = comparison()
    written = found.write(tmp_path / "out")
    assert written.page == tmp_path / "out" / "report.html"
    assert written.page.read_text() == make_comparison_page(found).html
    tables = sorted(path.name for path in written.tables.glob("*.md"))
    assert tables == [
        *("costs.md", "differences_nll.md", "differences_rouge1.md", "scores_nll.md"),
        *("scores_rouge1.md", "seeds.md", "settings.md"),
    ]
    lines = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [(line["metric"], line["method"], line["mode"]) for line in lines][:2] == [
        ("rouge1", "fedit", "instance"),
        ("rouge1", "fedit", "global"),
    ]
    line = next(n for n in lines if n["metric"] == "nll" and n["method"] != "fedit")
    estimate = found["nll"][line["method"]]["TTP"]
    assert float(line["TTP"]) == estimate.value
    assert float(line["TTP_over_instances_low"]) == estimate.over_instances.low
    assert estimate.over_seeds is not None
    assert float(line["TTP_over_seeds_high"]) == estimate.over_seeds.high
    assert float(line["P_minus"]) == pytest.approx(-0.5)
    assert (line["tokens"], line["tokens_off"], line["bytes_sent"]) == ("300.0", "0.5", "2000000.0")
    # Written again, it is the same.
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    found.write(tmp_path / "out")
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_the_terminal_shows_values_both_intervals_and_notes():
    found = comparison()
    out = io.StringIO()
    Reporter(Console(file=out, width=250)).show(render(found))
    text = out.getvalue()
    estimate = found["nll"]["fedit"]["P"]
    assert estimate.text(2) in text and "±" in estimate.text(2)
    assert "P minus fedit" in text
    assert "tokens, % more than fedit" in text
    assert all(note in text for note in found.notes)


def test_what_was_not_evaluated():
    with pytest.raises(KeyError, match="'exact_match' was not evaluated; there are rouge1, nll"):
        comparison()["exact_match"]
