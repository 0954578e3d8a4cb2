"""Differences between runs are those of the same client on the same instance."""

import json

import pytest
from scipy.special import stdtrit

from feddpa_jax.report.content import read_runs
from feddpa_jax.report.paired import differences


def edit(folder, change):
    """Changes every line of a run's answers; None leaves one out."""
    file = folder / "eval" / "instances.jsonl"
    lines = [change(json.loads(line)) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))


def test_a_constant_difference_of_few_instances_has_no_interval(make_run):
    runs = read_runs([make_run("a", nll=1.0), make_run("b", method="fedit", nll=1.25)])
    found = differences(runs[1], runs[0])
    assert list(found) == ["exact_match", "nll"]  # Neither has ROUGE-1 by instance.
    for estimate in (found["nll"].p, found["nll"].ttp):
        assert estimate.value == pytest.approx(0.25)
        assert "2 test instances of task" in estimate.over_instances.why
    back = differences(runs[0], runs[1])
    assert back["nll"].p.value == pytest.approx(-0.25)


def test_by_hand(make_run):
    one, two = make_run("a", each=8), make_run("b", method="fedit", each=8)

    def worse(line):
        # 0.6 on the first client's own task, once.
        if line["client"].startswith("<script>") and line["index"] == 0:
            line["scores"]["nll"] += 0.6
        return line

    edit(two, worse)
    runs = read_runs([one, two])
    found = differences(runs[1], runs[0])["nll"]
    assert found.p.value == pytest.approx(0.6 / 8 / 3)  # eight instances of the task, three clients
    assert found.ttp.value == pytest.approx(0.6 / 8 / 9)  # and nine cells
    # One of eight: its standard error is its mean's own size, and t has 7 degrees of freedom.
    span = found.p.over_instances
    assert span.low == pytest.approx(found.p.value * (1 - stdtrit(7, 0.975)))
    assert span.high > found.p.value * (1 + stdtrit(7, 0.975))


@pytest.mark.parametrize(
    "what", ["a missing answer", "another task", "another instance", "no answers"]
)
def test_other_instances_are_not_compared(make_run, what):
    one, two = make_run("a"), make_run("b", method="fedit")

    def change(line):
        if what == "no answers" or (what == "a missing answer" and line["index"] == 5):
            return None
        if what == "another task" and line["index"] == 0:
            line["task"] = "e"
        if what == "another instance" and line["index"] == 0:
            line["instance"] = "f" * 16
        return line

    edit(two, change)
    runs = read_runs([one, two])
    assert differences(runs[1], runs[0]) == {}


@pytest.mark.parametrize("what", ["own tasks", "mode"])
def test_other_questions_are_not_compared(make_run, what):
    one, two = make_run("a"), make_run("b", method="fedit")
    file = two / "eval" / "summary.json"
    content = json.loads(file.read_text())
    if what == "own tasks":
        first, *others = content["own_tasks"]
        content["own_tasks"][first] = content["own_tasks"][others[0]]
    else:
        del content["modes"]["instance"]  # the last evaluated one stands for it in tables
    file.write_text(json.dumps(content))
    runs = read_runs([one, two])
    assert runs[1].evaluation is not None and runs[1].evaluation.answers
    assert differences(runs[1], runs[0]) == {}
