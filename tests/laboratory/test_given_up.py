"""What rules give up, against two references by hand; on the screen and on the page."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from feddpa_jax.cli.console import Reporter
from feddpa_jax.cli.findings_table import render
from feddpa_jax.evaluate.estimating import summarize
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.laboratory.candidates import Candidate
from feddpa_jax.laboratory.choosing import pooled
from feddpa_jax.laboratory.collect import WEIGHTS, Collected
from feddpa_jax.laboratory.findings import Finding, Split, interpolated, judge, summary_of
from feddpa_jax.laboratory.given_up import References, find_references, given_up, note_on_losses
from feddpa_jax.laboratory.questions import Questions
from feddpa_jax.report.comparison import read_comparison
from feddpa_jax.report.given_up_table import given_up_table
from feddpa_jax.weighting.settings import WeightingSettings

# Four clients with a task each, six held-out and six test instances of each task.
OWN_CK = np.eye(4, dtype=bool)
TASKS = Tasks(("a", "b", "c", "d"), np.repeat(np.arange(4), 6), OWN_CK)
HELD, TEST = slice(0, 24), slice(24, 48)
W = np.array(WEIGHTS)
OWN_CJ = np.tile(OWN_CK[:, TASKS.task_I], 2)
DRAW = np.random.default_rng(0)
# On own tasks a parabola around its best weight, on foreign ones a line up from the global adapter.
BEST = 0.625
NLL_CJW = (
    np.where(OWN_CJ[..., None], 4 * (W - BEST) ** 2, W)
    + DRAW.normal(5.0, 1.0, (4, 48))[..., None]
    + 0.2 * W * DRAW.normal(0.0, 1.0, (4, 48))[..., None]
)
# Exact match is best at one eighth on own tasks: what is best by NLL is not.
GREEDY_CJW = np.where(OWN_CJ[..., None], W == 0.125, W == 0.0)


@pytest.fixture(scope="module")
def collected() -> Collected:
    questions = Questions([1, 2, 3, 4], [()] * 4, [], [], (1,))
    return Collected(questions, NLL_CJW, GREEDY_CJW, NLL_CJW, {})


def test_the_references(collected):
    choosing = pooled(TASKS, HELD)
    assert find_references(collected, choosing, ["nll"]) == References(BEST, 0.0)
    assert find_references(collected, choosing, ["exact_match"]) == References(0.125, 0.0)
    words = note_on_losses(References(BEST), "held-out examples")
    assert "the constant mix 0.625 to local, of the 9 constant mixes the best on held-out" in words


def test_differences_are_paired_and_have_their_own_reference(collected):
    test, references = Split(TEST, TASKS), References(BEST)
    weight_CJ = np.where(OWN_CJ, 0.5, 0.25)
    found = given_up(interpolated(collected, test, weight_CJ), collected, test, references)
    of_p, of_ttp = (
        judge(collected, test, weight_CJ, np.full((4, 48), weight)) for weight in (BEST, 0.0)
    )
    for name in ("nll", "exact_match"):
        for measure, expected in (("P", of_p[name].p), ("TTP", of_ttp[name].ttp)):
            own = found[name][measure]
            assert own.value == pytest.approx(expected.value, abs=1e-5)
            for kind in ("over_instances", "over_clients"):
                assert getattr(own, kind).brackets(3) == getattr(expected, kind).brackets(3)
    # Own: 4 (1 / 8)^2 more; foreign: 1 / 4 more, and own (1 / 8)^2 4 - BEST^2 4, of four tasks.
    loss = found["nll"]["P"].over_instances
    assert loss.bounded and loss.low < 0.0625 < loss.high
    assert found["nll"]["TTP"].value == pytest.approx(0.75 * 0.25 - 0.25 * 1.5, abs=0.05)
    # 0 of the global adapter's 100 on foreign tasks is left.
    assert found["exact_match"]["TTP"].value == pytest.approx(-75.0)


def test_the_references_own_answers_and_few_instances(collected):
    test, references = Split(TEST, TASKS), References(BEST)
    same = interpolated(collected, test, np.zeros((4, 48)))
    found = given_up(same, collected, test, references)
    assert found["exact_match"]["TTP"].text(1) == "0.0 [–] (–)"
    few = Split(
        slice(24, 30), Tasks(("a", "b", "c", "d"), np.array([0, 1, 2, 3, 0, 1]), TASKS.own_CK)
    )
    found = given_up(interpolated(collected, few, np.ones((4, 48))), collected, few, references)
    assert not found["nll"]["P"].over_instances.bounded
    assert found["nll"]["P"].over_clients.bounded


def finding(collected: Collected, label: str, weight: float) -> Finding:
    test, weight_CJ = Split(TEST, TASKS), np.full((4, 48), weight)
    scores_CI = interpolated(collected, test, weight_CJ)
    of_test = {name: summarize(own_CI, TASKS) for name, own_CI in scores_CI.items()}
    return Finding(
        Candidate(label, WeightingSettings("constant", weight), weight_CJ),
        of_test,
        of_test,
        of_test,
        given_up=given_up(scores_CI, collected, test, References(BEST)),
    )


def test_on_the_screen_and_on_the_page(collected):
    findings = [finding(collected, "paper", 0.0), finding(collected, "best constant", 0.5)]
    shown = {
        (name, m): one.text(3 if name == "nll" else 1)
        for name, own in findings[1].given_up.items()
        for m, one in own.items()
    }
    assert len(set(shown.values())) == 4
    file = io.StringIO()
    Reporter(Console(file=file, width=250)).show(render(findings, [], References(BEST)))
    told = file.getvalue().partition("What is given up")[2]
    assert told.count("the constant mix 0.625 to local") == 2
    (row,) = (line for line in told.splitlines() if "best constant" in line)
    cells = [cell.strip() for cell in row.split("│")[2:-1]]
    order = [(name, m) for m in ("P", "TTP") for name in ("nll", "exact_match")]
    assert cells == [shown[one] for one in order]

    about = {
        "chosen_by": ["nll"],
        "interpolation_error": {},
        "validation_instances": 24,
        "test_instances": 24,
        "references": References(BEST).to_json(),
        "keep": {"measure": "P"},
    }
    content = summary_of(collected, Split(TEST, TASKS), findings, about=about)
    assert content["references"]["P"]["local_weight"] == BEST
    comparison = read_comparison(content)
    assert comparison.keeps
    table = given_up_table("a", comparison)
    assert table is not None
    by_heading = dict(zip(table.headings(), table.rows()[1], strict=True))
    for (name, m), text in shown.items():
        metric = {"nll": "response NLL, nats", "exact_match": "exact match, %"}[name]
        (found,) = (v for h, v in by_heading.items() if re.match(f"{metric}: {m} minus", h))
        assert found == text
    # Files of older versions have none.
    for rule in content["rules"]:
        del rule["given_up"]
    assert given_up_table("a", read_comparison(content)) is None
