"""What is read from run folders, and what is refused."""

import json

import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.evaluate.interval import OLDER, missing_notes
from feddpa_jax.report.content import differing, read_runs
from feddpa_jax.types import UserError
from tests.report.conftest import HOSTILE, TASKS, interval


def test_a_run(make_run):
    (run,) = read_runs([make_run("one")])
    assert (run.label, run.method) == ("feddpa_f", "feddpa_f")
    assert run.config["lora.targets"] == ["q_proj", "v_proj"]
    assert run.environment["packages.jax"] == "<1>"
    evaluation = run.evaluation
    assert evaluation is not None and evaluation.answers_with() == "instance"
    local = evaluation.modes["local"]["nll"]
    for measure, value in (("P", 3.0), ("TTP", 3.5)):
        assert local.estimates[measure].to_json() == interval(value)
    assert local.matrix[HOSTILE[1]][TASKS[2]] == pytest.approx(4.2)
    assert "fixed" not in evaluation.modes
    assert list(evaluation.told) == ["rouge1", "exact_match", "nll"]
    # The answers are those of the mode "instance": another one's NLL is greater by 5.
    first = evaluation.answers[HOSTILE[0], 1]
    assert (first.task, first.instance) == (TASKS[1], f"{1:016x}")
    assert first.scores == {"nll": 1.1, "exact_match": 0.0}
    assert evaluation.answers[HOSTILE[0], 3].scores == {"nll": 2.3, "exact_match": 100.0}
    assert len(evaluation.answers) == 3 * 6


def test_an_older_version_s_evaluation_is_read_without_its_intervals(make_run):
    folder = make_run("one")
    file = folder / "eval" / "summary.json"
    content = json.loads(file.read_text())
    for by_metric in content["modes"].values():
        for found in by_metric.values():
            found |= {m: {"value": 2.0, "low": 1.5, "high": 2.5} for m in ("P", "TTP")}
    file.write_text(json.dumps(content))
    (run,) = read_runs([folder])
    assert run.evaluation is not None
    found = run.evaluation.modes["local"]["nll"].estimates["P"]
    assert found.text(1) == "2.0 [–] (–)" and OLDER in missing_notes([found])[0]


def test_rounds(make_run):
    (run,) = read_runs([make_run("one")])
    assert [done.number for done in run.rounds] == [0, 1, 2]
    last = run.rounds[2]
    assert (last.real_tokens, last.computed_tokens, last.seconds) == (1020, 1252, 4.0)
    assert (last.received, last.sent) == (1_500_000, 250_002)
    assert last.losses["local"] == {c: 3.0 + k / 8 for k, c in enumerate(HOSTILE)}
    assert list(run.rounds[0].losses) == ["global"]


def test_a_comparison_of_rules(make_run):
    (run,) = read_runs([make_run("one")])
    found = run.comparison
    assert found is not None
    paper, _, bound = found.rules
    assert (paper.title, paper.words) == ("paper (cosine)", "0.5 to local 0")
    assert (bound.title, bound.words) == ("bound: <b>", "a bound, no rule")
    assert paper.test["nll"]["P"].value == 1.25  # test, not validation's 7
    assert paper.minus_paper["exact_match"]["TTP"].value == -29.5
    assert paper.exact["rouge1"]["P"].value == 50.0 and bound.exact == {}
    assert found.curves["nll"]["foreign"][0].to_json() == interval(4.0)
    assert found.interpolation_error["nll"] == {"P": 0.02, "TTP": 0.01}


def test_quantiles_of_weights(make_run):
    (run,) = read_runs([make_run("one")])
    assert run.evaluation is not None
    # Own instances are 0 and 3, 1 and 4, 2 and 5: 0.8, 0.82, ... 0.9, a step of 0.02 each.
    weights = run.evaluation.weights
    assert weights["own"] == pytest.approx([0.805, 0.825, 0.85, 0.875, 0.895])
    # Foreign ones: 0.2, 0.18, ... 0.1, each twice; the quantiles of 12 lie 11 steps apart.
    assert weights["foreign"] == pytest.approx([0.1, 0.12, 0.15, 0.18, 0.2])


def test_the_answering_mode(make_run):
    folder = make_run("one")
    file = folder / "eval" / "summary.json"
    content = json.loads(file.read_text())
    for told, expected in (("global", "global"), ("fixed", "instance"), (None, "instance")):
        file.write_text(json.dumps(content | {"answers_with": told}))
        evaluation = read_runs([folder])[0].evaluation
        assert evaluation is not None and evaluation.answers_with() == expected


def test_labels_tell_runs_apart(make_run):
    one, two, three = make_run("x/a"), make_run("y/a"), make_run("x/b", method="fedit")
    assert [r.label for r in read_runs([one, three])] == ["feddpa_f", "fedit"]
    assert [r.label for r in read_runs([one, two])] == ["x/a", "y/a"]
    assert differing(read_runs([one, three])) == ["fed.method"]
    with pytest.raises(UserError, match="named twice"):
        read_runs([one, one])
    with pytest.raises(UserError, match="named twice"):
        read_runs([one, one / ".." / one.name])


@pytest.mark.parametrize("file", ["eval/summary.json", "weigh/summary.json", "environment.json"])
def test_damaged_json(make_run, file):
    folder = make_run("one")
    (folder / file).write_text('{"half": ')
    with pytest.raises(UserError, match=rf"{file}: not valid JSON"):
        read_runs([folder])


def test_damaged_lines(make_run):
    folder = make_run("one")
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines + '{"round": 3, "ph')
    assert len(read_runs([folder])[0].rounds) == 3  # stopped while it wrote
    (folder / "metrics.jsonl").write_text('{"round"\n' + lines)
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: not valid JSON"):
        read_runs([folder])


OF_ANOTHER_FORM = [
    ("eval/summary.json", "{}"),
    ("eval/summary.json", '{"modes": {"global": {}}}'),
    ("eval/summary.json", '{"modes": {"global": {"nll": {"P": 1, "TTP": 2}}}}'),
    ("weigh/summary.json", '{"rules": []}'),
    ("metrics.jsonl", '{"round": 0}\n'),
    ("eval/instances.jsonl", '{"mode": "instance"}\n'),
]


@pytest.mark.parametrize(("file", "text"), OF_ANOTHER_FORM)
def test_results_of_another_form(make_run, tmp_path, capsys, file, text):
    folder = make_run("one")
    (folder / file).write_text(text)
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 2
    said = capsys.readouterr().err
    assert str(folder) in said and "again" in said and said.count("\n") == 1
    assert "not in the form that this version writes" in said


@pytest.mark.parametrize(("file", "text"), OF_ANOTHER_FORM)
def test_of_several_runs_the_others_are_shown(make_run, tmp_path, capsys, file, text):
    """The page and the command name run, file and remedy; what can be read is there."""
    good, bad = make_run("good"), make_run("bad", method="fedit")
    (bad / file).write_text(text)
    out = tmp_path / "page.html"
    assert main(["report", str(good), str(bad), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    (warning,) = [line for line in said.splitlines() if "not in the form" in line]
    assert str(bad / file.partition("/")[0]) in warning and "again" in warning
    first, second = read_runs([good, bad])
    assert first.problems == [] and second.problems == [warning]
    assert first.evaluation and first.comparison and first.rounds
    shown = [bool(second.evaluation), bool(second.comparison), bool(second.rounds)]
    assert shown == [not file.startswith(part) for part in ("eval", "weigh", "metrics")]
    page = out.read_text()
    assert "<b>fedit</b>" in page and page.count("not all of its results are shown") == 1


def test_numbers_that_cannot_be_drawn(make_run):
    folder = make_run("one")
    file = folder / "eval" / "summary.json"
    content = json.loads(file.read_text())
    content["modes"]["local"]["nll"]["matrix"][HOSTILE[0]][TASKS[0]] = float("inf")
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="inf is no finite number"):
        read_runs([folder])


@pytest.mark.parametrize("file", ["config.yaml", "metrics.jsonl", "eval/summary.json"])
def test_no_text(make_run, file):
    folder = make_run("one")
    (folder / file).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=rf"{file}: cannot be read as text"):
        read_runs([folder])


def test_no_run(make_run, tmp_path):
    with pytest.raises(UserError, match=r"holds no run \(no config\.yaml\)"):
        read_runs([tmp_path])
    with pytest.raises(UserError, match=r"holds no run \(no config\.yaml\)"):
        read_runs([make_run("one"), tmp_path])
