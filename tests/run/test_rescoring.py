"""`feddpa eval --rescore`: tables made again from saved answers, without a model."""

import json

import numpy as np
import pytest

from feddpa_jax import Config, UserError, load_federation, rescore
from feddpa_jax.cli.program import main
from feddpa_jax.evaluate.evaluation import Asked, ModeResult
from feddpa_jax.evaluate.modes import ModeWeights, fixed_weights
from feddpa_jax.evaluate.results import make_evaluation, write_evaluation
from feddpa_jax.files import manifest
from feddpa_jax.run.folder import RunFolder

METRICS = ("rouge1", "exact_match", "nll")
DATA = load_federation("sample", max_train=6, max_test=4)
SETTINGS = {
    "method": "feddpa_t",
    "answers_with": "instance",
    "round": 3,
    "weighting": {"scales": "local"},
    "decoding": {"metrics": list(METRICS), "beams": 1},
}


@pytest.fixture
def run(tmp_path):
    """A run's folder with the evaluation of made-up answers; weights by layer in one mode."""
    rng = np.random.default_rng(0)
    C, I = len(DATA.clients), len(DATA.test)
    local_CIL = rng.random((C, I, 3)).astype(np.float32)
    similarity_CI = rng.random((C, I)).astype(np.float32)
    weights = {
        "global": fixed_weights("global", C, I, fixed=0.5),
        "instance": ModeWeights(1 - local_CIL, local_CIL, similarity_CI),
    }
    texts_CI = [
        [e.output if rng.random() < 0.5 else "no 😀\u2028" for e in DATA.test] for _ in range(C)
    ]
    results = {
        mode: ModeResult(
            own,
            {
                "rouge1": 100 * rng.random((C, I)),
                "exact_match": 100.0 * (rng.random((C, I)) < 0.4),
                "nll": rng.gamma(2, 1, (C, I)).astype(np.float32),
            },
            texts_CI,
        )
        for mode, own in weights.items()
    }
    run = RunFolder(tmp_path / "run")
    data = {"path": "sample", "max_train": 6, "max_test": 4}
    run.start(Config(data=data, eval={"metrics": METRICS}))
    questions = Asked(DATA.clients, DATA.test)
    write_evaluation(run.evaluation, make_evaluation(results, questions, settings=SETTINGS))
    return run


def test_what_is_new_stays_as_it_is_to_the_byte(run):
    def content():
        names = ("summary.json", "instances.jsonl")
        return {name: (run.evaluation / name).read_bytes() for name in names}

    before = content()
    found = rescore(run.path)
    assert content() == before
    assert found.settings == SETTINGS
    assert set(found.modes) == {"global", "instance"}


def test_an_older_evaluation_gets_intervals_and_the_most_common_answer(run):
    file = run.evaluation / "summary.json"
    new = json.loads(file.read_text())
    old = json.loads(file.read_text())
    for by_metric in old["modes"].values():
        for summary in by_metric.values():
            for measure in ("P", "TTP"):
                summary[measure] = {"value": summary[measure]["value"], "low": 0.0, "high": 9.0}
    del old["most_common_answer"], old["gains"]
    file.write_text(json.dumps(old))
    (run.evaluation / manifest.NAME).unlink()
    found = rescore(str(run.path))
    assert found["nll"]["instance"].p.over_instances.bounded
    assert found.most_common["exact_match"].p.known
    assert json.loads(file.read_text()) == new


def test_a_metric_of_texts_is_computed_from_the_saved_ones(run):
    lines = [json.loads(line) for line in (run.evaluation / "instances.jsonl").open()]
    hits = [line["prediction"] == line["target"] for line in lines if line["mode"] == "global"]
    for line in lines:
        del line["scores"]["exact_match"], line["scores"]["nll"]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.evaluation / "instances.jsonl").write_text(text)
    (run.evaluation / manifest.NAME).unlink()
    with pytest.raises(UserError, match=r"^eval.metrics: nll was not scored"):
        rescore(run.path, ["--eval.metrics", "[nll]"])
    assert rescore(run.path).metrics == ("rouge1",)
    found = rescore(run.path, ["--eval.metrics", "[exact_match]"])
    assert found["exact_match"]["global"].matrix_CK.mean() == pytest.approx(100 * np.mean(hits))
    assert 0 < np.mean(hits) < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instance": "0" * 16}, r"data.path: the data have no test instance 0"),
        ({"client": "nobody"}, r"is damaged \(answers of .* are missing in the mode global\)"),
        ({"scores": None}, r"is damaged"),
        ({"index": 99}, r"is damaged \(answers of"),
    ],
)
def test_other_data_and_damage_are_refused(run, change, message):
    file = run.evaluation / "instances.jsonl"
    first, *rest = file.read_text().split("\n")
    file.write_text("\n".join([json.dumps({**json.loads(first), **change}), *rest]))
    (run.evaluation / manifest.NAME).unlink()
    with pytest.raises(UserError, match=message):
        rescore(run.path)


def test_without_an_evaluation_or_with_a_step_it_is_refused(run, tmp_path, capsys):
    command = ["eval", "--run-dir", str(run.path), "--rescore"]
    assert main([*command, "--step", "3"]) == 2
    assert "step: says nothing about saved answers" in capsys.readouterr().err
    assert main(command) == 0
    assert "most common answer" in capsys.readouterr().out
    empty = RunFolder(tmp_path / "empty")
    empty.start(Config())
    with pytest.raises(UserError, match="has no evaluation; make one with feddpa eval"):
        rescore(empty.path)
