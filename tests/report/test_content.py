"""What is read from run folders, and what is refused."""

import json

import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.report.content import differing, read_runs
from feddpa_jax.types import UserError
from tests.report.conftest import HOSTILE, TASKS


def test_a_run(make_run):
    (run,) = read_runs([make_run("one")])
    assert (run.label, run.method, run.answers_with()) == ("feddpa_f", "feddpa_f", "instance")
    assert run.config["lora.targets"] == ["q_proj", "v_proj"]
    assert run.environment["packages.jax"] == "<1>"
    assert run.value("local", "nll", "P") == {"value": 3.0, "low": 2.875, "high": 3.375}
    assert run.value("local", "nll", "TTP") == {"value": 3.5, "low": 3.375, "high": 3.875}
    assert run.value("fixed", "nll", "TTP") is None
    # The answers are those of the mode "instance": another one's NLL is greater by 5.
    first = run.answers[HOSTILE[0], 1]
    assert (first.task, first.instance) == (TASKS[1], f"{1:016x}")
    assert first.scores == {"nll": 1.1, "exact_match": 0.0}
    assert run.answers[HOSTILE[0], 3].scores == {"nll": 2.3, "exact_match": 100.0}
    assert len(run.answers) == 3 * 6


def test_quantiles_of_weights(make_run):
    (run,) = read_runs([make_run("one")])
    # Own instances are 0 and 3, 1 and 4, 2 and 5: 0.8, 0.82, ... 0.9, a step of 0.02 each.
    assert run.weights["own"] == pytest.approx([0.805, 0.825, 0.85, 0.875, 0.895])
    # Foreign ones: 0.2, 0.18, ... 0.1, each twice; the quantiles of 12 lie 11 steps apart.
    assert run.weights["foreign"] == pytest.approx([0.1, 0.12, 0.15, 0.18, 0.2])


def test_the_answering_mode(make_run):
    folder = make_run("one")
    file = folder / "eval" / "summary.json"
    content = json.loads(file.read_text())
    for told, expected in (("global", "global"), ("fixed", "instance"), (None, "instance")):
        file.write_text(json.dumps(content | {"answers_with": told}))
        assert read_runs([folder])[0].answers_with() == expected


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


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("eval/summary.json", "{}"),
        ("eval/summary.json", '{"modes": {"global": {}}}'),
        ("eval/summary.json", '{"modes": {"global": {"nll": {"P": 1, "TTP": 2}}}}'),
        ("weigh/summary.json", '{"rules": []}'),
        ("metrics.jsonl", '{"round": 0}\n'),
        ("eval/instances.jsonl", '{"mode": "instance"}\n'),
    ],
)
def test_results_of_another_form(make_run, tmp_path, capsys, file, text):
    folder = make_run("one")
    (folder / file).write_text(text)
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 2
    said = capsys.readouterr().err
    assert str(folder) in said and "make it again" in said and said.count("\n") == 1


@pytest.mark.parametrize("file", ["config.yaml", "metrics.jsonl", "eval/summary.json"])
def test_no_text(make_run, file):
    folder = make_run("one")
    (folder / file).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=rf"{file}: cannot be read as text"):
        read_runs([folder])


def test_no_run(tmp_path):
    with pytest.raises(UserError, match=r"holds no run \(no config\.yaml\)"):
        read_runs([tmp_path])
