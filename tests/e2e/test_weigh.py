"""feddpa weigh as a user meets it."""

import csv
import json
import re
import shlex

import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.run.folder import RunFolder
from tests.e2e.small_runs import refused

pytestmark = pytest.mark.usefixtures("shared_steps")

SMALL = [
    *("--model.path", "tiny", "--model.dtype", "float32", "--fed.method", "feddpa_f"),
    *("--data.max_length", "256", "--data.max_train", "5", "--data.max_test", "1"),
    *("--lora.rank", "2", "--fed.rounds", "1", "--fed.local_epochs", "1"),
    *("--fed.batch_size", "2", "--fed.micro_batch_size", "null", "--fed.learning_rate", "1e-2"),
    *("--eval.max_new_tokens", "3", "--weighting.support", "2"),
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "held"
    train = ["train", "--no-eval", "--run-dir", str(folder), *SMALL]
    assert main([*train, "--data.validation", "2"]) == 0
    return folder


def test_weigh(run_dir, tmp_path, monkeypatch, capsys):
    rule = "def gate(query_BD, dream_ND):\n    return 0.25 + 0 * query_BD[:, 0]\n"
    (tmp_path / "my_rules.py").write_text(rule, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    command = ["weigh", "--run-dir", str(run_dir), "--scales", "0.5,1", "--choose", "pooled"]
    command += ["--layers", "1"]
    rules = ["--rules", "cosine,calibrated,my_rules.py:gate", "--exact", "1"]
    assert main([*command, *rules]) == 0
    out = capsys.readouterr().out
    assert "run exactly" in out
    assert "knows the answer" in out
    assert (run_dir / "weigh" / "rules" / "my_rules.py").read_text(encoding="utf-8") == rule

    content = json.loads((run_dir / "weigh" / "summary.json").read_text())
    assert content["chosen_by"] == ["nll"]
    by_label = {rule["label"]: rule for rule in content["rules"]}
    assert {"paper", "released code", "best my_rules.py:gate", "bound: knows the task"} <= set(
        by_label
    )
    assert by_label["best my_rules.py:gate"]["weights"]["own"][0] in (0.125, 0.25, 0.875, 0.75)
    assert by_label["paper"]["setting"]["support"] == 2
    for rule in content["rules"]:
        for measure in ("P", "TTP"):
            own, of_paper = (r["test"]["nll"][measure]["value"] for r in (rule, by_label["paper"]))
            minus = rule["minus_paper"]["nll"][measure]["value"]
            assert minus == pytest.approx(own - of_paper, abs=1e-6)
            # What rules were chosen by is not what is reported.
            assert rule["validation"]["nll"][measure]["value"] != own
    assert by_label["local alone"]["minus_paper"]["nll"]["TTP"]["value"] != 0
    # Interpolated and exact agree within what interpolation is off by.
    paper = by_label["paper"]
    for rule in content["rules"]:
        for measure, stated in content["interpolation_error"]["nll"].items():
            if rule["exact"]:
                exact, test = rule["exact"]["nll"][measure], rule["test"]["nll"][measure]
                assert abs(exact["value"] - test["value"]) <= stated
    assert paper["exact"].keys() == {"rouge1", "exact_match", "nll"}
    assert len(content["curves"]["nll"]["own"]) == len(content["mix_weights"]) == 9

    rows = list(csv.DictReader((run_dir / "weigh" / "settings.csv").open()))
    chosen = by_label["best cosine"]
    mean = sum(chosen["validation"]["nll"][z]["value"] for z in ("P", "TTP"))
    of_cosine = [float(r["nll P"]) + float(r["nll TTP"]) for r in rows if r["rule"] == "cosine"]
    assert mean == pytest.approx(min(of_cosine), abs=1e-4)

    # The command that answers with the best rule is one.
    shown = " ".join(out.split())
    (said,) = re.findall(r"feddpa (eval --run-dir .*?--weighting\.layer \w+)", shown)
    assert main([*shlex.split(said), "--eval.modes", "[instance]", "--eval.metrics", "[nll]"]) == 0
    best = next(rule for rule in content["rules"] if rule["label"].startswith("best"))
    assert f"--weighting.rule {best['name']} " in said
    capsys.readouterr()

    # The second time nothing is computed again; other layers are other evidence.
    assert main([*command, "--rules", "entropy", "--exact", "0"]) == 0
    assert "computed before" in capsys.readouterr().out
    refused(capsys, [*command[:-1], "2"], "settings", "--fresh")


def test_rules_whose_scores_lie_on_no_curve(run_dir, capsys):
    """They are run exactly: what an evaluation gives, and the same difference to the paper's."""
    rules = ["layerwise", "least_entropy"]
    command = ["weigh", "--run-dir", str(run_dir), "--rules", ",".join(rules), "--scales", "0.5"]
    command += ["--choose", "pooled"]
    values = ["--parameters", "least_entropy: {steps: [1, 2]}"]
    assert main([*command, "--layers", "1", "--exact", "0", "--fresh", *values]) == 0
    content = json.loads((run_dir / "weigh" / "summary.json").read_text())
    by_label = {rule["label"]: rule for rule in content["rules"]}
    rows = list(csv.DictReader((run_dir / "weigh" / "settings.csv").open()))
    # One scale to either adapter; a rule that gives weights is not scaled, and has two values.
    assert [row["rule"] for row in rows] == ["layerwise"] * 2 + ["least_entropy"] * 2
    for name in rules:
        found = by_label[f"best {name}"]
        own = [float(r["nll P"]) + float(r["nll TTP"]) for r in rows if r["rule"] == name]
        of_best = sum(found["validation"]["nll"][z]["value"] for z in ("P", "TTP"))
        assert of_best == pytest.approx(min(own), abs=1e-5)
        setting = found["setting"]
        chosen = [f"--weighting.{key}={json.dumps(value)}" for key, value in setting.items()]
        command = ["eval", "--run-dir", str(run_dir), "--eval.modes", "[instance]", *chosen]
        assert main([*command, "--eval.metrics", "[nll]"]) == 0
        summary = json.loads((run_dir / "eval" / "summary.json").read_text())
        for measure in ("P", "TTP"):
            exact = summary["modes"]["instance"]["nll"][measure]["value"]
            assert found["test"]["nll"][measure]["value"] == pytest.approx(exact, abs=1e-5)
            off = found["minus_paper"]["nll"][measure]["value"]
            paper = by_label["paper"]["test"]["nll"][measure]["value"]
            stated = content["interpolation_error"]["nll"][measure]
            assert abs(exact - paper - off) <= stated + 1e-6
    capsys.readouterr()


def test_mistakes(run_dir, tmp_path, capsys):
    weigh = ["weigh", "--run-dir", str(run_dir)]
    refused(capsys, [*weigh, "--rules", "cosin"], "weighting.rule", "'cosin'", "cosine")
    refused(capsys, [*weigh, "--rules", "cosine,,l2"], "--rules", "empty name")
    refused(capsys, [*weigh, "--step", "0"], "--step", "--step last")
    refused(capsys, [*weigh, "--scales", "1,x"], "--scales", "'1,x'")
    refused(capsys, [*weigh, "--supports", "0"], "--supports")
    refused(capsys, [*weigh, "--layers", "3"], "--layers", "0 to 2")
    refused(capsys, [*weigh, "--exact", "-1"], "--exact")
    refused(capsys, [*weigh, "--keep", "P"], "--keep", "2 held-out examples", "--data.validation")
    refused(capsys, [*weigh, "--embed-with", "mixed,all"], "--embed-with", "'mixed,all'", "global")
    refused(capsys, [*weigh, "--by", "nll,rouge1"], "--by", "'nll,rouge1'", "nll or exact_match")
    for name, more, words in (
        ("none held", ["--data.validation", "0"], ["data.validation", "--data.validation 16"]),
        ("one adapter", ["--fed.method", "fedit"], ["fedit", "feddpa_f"]),
    ):
        folder = str(tmp_path / name)
        assert main(["train", "--no-eval", "--run-dir", folder, *SMALL, *more]) == 0
        capsys.readouterr()
        refused(capsys, ["weigh", "--run-dir", folder], *words)
        assert not (RunFolder(tmp_path / name).path / "weigh").exists()
