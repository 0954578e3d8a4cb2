"""What comes of an experiment: answers, weights, evaluations, the laboratory, exports, figures."""

import csv
import dataclasses
import io
import json
import logging
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pandas
import pytest

import feddpa_jax as fd
from feddpa_jax.hf.peft_format import read_adapter
from tests.small_experiment import Small, bits, small

pytestmark = pytest.mark.usefixtures("shared_steps")

KINDS = ("instances", "clients", "all")


class Seen(NamedTuple):
    """What an experiment that did everything told, by step."""

    experiment: fd.Experiment
    scores: fd.Evaluation
    laboratory: fd.Laboratory
    export: Path
    events: dict[str, list[fd.Progress]]
    lines: dict[str, list[str]]
    printed: tuple[str, str]


RULES: dict[str, Any] = {"scales": (0.5, 1.0), "layers": (1,), "supports": (2,), "exact": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def seen(made: Small, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    events: dict[str, list[fd.Progress]] = {}
    lines: dict[str, list[str]] = {}
    folder = tmp_path_factory.mktemp("exports") / "one"
    capture = pytest.MonkeyPatch()
    told: list[fd.Progress] = []
    handler = logging.Handler(logging.INFO)
    records: list[str] = []
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("feddpa_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    streams = io.StringIO(), io.StringIO()
    capture.setattr(sys, "stdout", streams[0])
    capture.setattr(sys, "stderr", streams[1])
    experiment = made.experiment(on_progress=told.append)
    steps: dict[str, Any] = {
        "train": experiment.train,
        "evaluate": experiment.evaluate,
        "weigh": lambda: experiment.weigh("anna", "Hi"),
        "generate": lambda: experiment.generate("anna", "Hi"),
        "laboratory": lambda: experiment.laboratory(["constant", fd.rules.cosine], **RULES),
        "export": lambda: experiment.export(folder, mixed=0.5),
    }
    found = {}
    try:
        for name, step in steps.items():
            told.clear()
            records.clear()
            found[name] = step()
            events[name], lines[name] = list(told), list(records)
    finally:
        capture.undo()
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    printed = streams[0].getvalue(), streams[1].getvalue()
    return Seen(experiment, found["evaluate"], found["laboratory"], folder, events, lines, printed)


@pytest.fixture(scope="module")
def durable(made: Small, tmp_path_factory: pytest.TempPathFactory) -> fd.Experiment:
    experiment = made.experiment(run_dir=tmp_path_factory.mktemp("runs") / "run")
    experiment.train()
    return experiment


def near(query_BD, support_BMD, *, power=1.0):
    """A rule of a notebook, with a hyperparameter."""
    return jnp.exp(-power * jnp.abs(support_BMD - query_BD[:, None]).mean(axis=-1)).max(axis=-1)


def test_nothing_is_printed(seen: Seen):
    assert seen.printed == ("", "")


def test_logging_gets_the_lines(seen: Seen):
    text = {name: "\n".join(lines) for name, lines in seen.lines.items()}
    assert "5 training examples of 2 clients" in text["train"]
    assert "feddpa_t: 2 clients, 3 rounds" in text["train"]
    assert "memory of each device" in text["train"]
    assert str(seen.export) in text["export"]


def test_progress_grows_and_ends(seen: Seen):
    units = {"training": "tokens", "scoring": "answers", "answering": "answers"}
    units |= {"collecting": "answers", "trying": "rules"}
    tasks = {name: list(dict.fromkeys(e.task for e in told)) for name, told in seen.events.items()}
    assert tasks["train"] == ["training"]
    assert set(tasks["evaluate"]) == {"scoring", "answering"}
    assert {"collecting", "trying"} <= set(tasks["laboratory"])
    assert not tasks["weigh"]
    for step, told in seen.events.items():
        running: dict[str, fd.Progress] = {}
        for event in told:
            assert event.unit == units[event.task]
            before = running.get(event.task)
            if before is None:
                assert (event.done, event.finished) == (0, False)
            else:
                assert before.done <= event.done <= event.total == before.total
            if event.finished:
                assert event.done == event.total > 0, (step, event)
                del running[event.task]
            else:
                running[event.task] = event
        assert not running, f"{step} did not say that it ended"
    losses = [event.note for event in seen.events["train"] if "loss" in event.note]
    assert [note.split(":")[0] for note in dict.fromkeys(losses)] == [
        f"round {number}" for number in (1, 2, 3)
    ]


def test_an_evaluation_is_read_by_metric_and_mode(seen: Seen):
    scores = seen.scores
    assert scores.metrics == ("nll", "exact_match", "rouge1")
    assert scores.modes == ("base", "global", "local", "fixed", "instance")
    summary = scores["nll"]["instance"]
    assert isinstance(summary.p, fd.Estimate)
    # Two clients with an instance each are too few for any interval.
    for span in (summary.p.over_instances, summary.ttp.over_clients, summary.ttp.over_all):
        assert isinstance(span, fd.Interval) and not span.bounded and span.why
    with pytest.raises(KeyError, match=r"'bleu' was not evaluated; there are nll, exact_match"):
        scores["bleu"]
    matrix = scores.matrix("nll", "instance")
    assert list(matrix) == ["anna", "ben"] == list(matrix["anna"])
    # P: each client on its own task; TTP: the mean of all.
    assert summary.p.value == pytest.approx((matrix["anna"]["anna"] + matrix["ben"]["ben"]) / 2)
    everything = [value for row in matrix.values() for value in row.values()]
    assert summary.ttp.value == pytest.approx(sum(everything) / 4)
    assert scores["nll"]["global"].ttp.value != summary.ttp.value


def test_every_answer_of_an_evaluation(seen: Seen):
    lines = seen.scores.instances
    assert len(lines) == 5 * 2 * 2
    matrix = seen.scores.matrix("nll", "local")
    for line in lines:
        whole = 0.0 if line["mode"] == "base" else 1.0
        assert line["global_weight"] + line["local_weight"] == pytest.approx(whole)
        if line["mode"] == "local":
            assert matrix[line["client"]][line["task"]] == pytest.approx(line["scores"]["nll"])


def test_an_evaluation_as_a_data_frame(seen: Seen):
    frame = seen.scores.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    kinds = [f"_over_{kind}_{end}" for kind in KINDS for end in ("low", "high")]
    measures = [f"{z}{end}" for z in ("P", "TTP") for end in ("", *kinds)]
    assert list(frame.columns) == ["metric", "mode", *measures]
    assert len(frame) == 3 * 5
    for row in frame.to_dict("records"):
        summary = seen.scores[row["metric"]][row["mode"]]
        assert (row["P"], row["TTP"]) == (summary.p.value, summary.ttp.value)
        for measure, estimate in (("P", summary.p), ("TTP", summary.ttp)):
            ends = [row[f"{measure}{end}"] for end in kinds]
            assert ends == pytest.approx(list(estimate.columns("P").values())[1:], nan_ok=True)


def test_memory_and_folder_evaluate_alike(seen: Seen, durable: fd.Experiment):
    assert durable.run is not None
    found = durable.evaluate()
    ours, theirs = (scores.summary() for scores in (seen.scores, found))
    assert ours == theirs
    place = durable.run.evaluation
    assert json.loads((place / "summary.json").read_text()) == json.loads(json.dumps(ours))
    written = [json.loads(line) for line in (place / "instances.jsonl").read_text().splitlines()]
    assert written == seen.scores.instances == found.instances


def test_one_prompt_is_weighed_and_answered_as_in_an_evaluation(made: Small, seen: Seen):
    asked = made.data.test[1]
    (line,) = (
        line
        for line in seen.scores.instances
        if (line["mode"], line["client"], line["task"]) == ("instance", "anna", asked.task)
    )
    weight = seen.experiment.weigh("anna", asked.instruction)
    assert weight.similarity == pytest.approx(line["similarity"], abs=1e-5)
    assert weight.local_weight == pytest.approx(line["local_weight"], abs=1e-5)
    assert weight.global_weight == pytest.approx(line["global_weight"], abs=1e-5)
    answer = seen.experiment.generate("anna", asked.instruction)
    assert (answer.text, answer.mode) == (line["prediction"], "instance")
    assert answer.weight == weight
    alone = seen.experiment.generate("anna", asked.instruction, mode="global")
    assert alone.weight == fd.Weight(1.0, 0.0)
    # Another input is another prompt.
    assert seen.experiment.weigh("anna", asked.instruction, input="x") != weight
    with pytest.raises(fd.UserError, match=r"'mixed'.*base, global, local, fixed, instance"):
        seen.experiment.generate("anna", "Hi", mode="mixed")


def test_a_rule_is_given_by_name_or_as_a_function(seen: Seen):
    weigh = seen.experiment.weigh
    plain = weigh("ben", "Hi")
    assert weigh("ben", "Hi", rule=fd.rules.cosine) == weigh("ben", "Hi", rule="cosine") == plain
    try:
        mine = weigh("ben", "Hi", rule=near)
        assert mine != plain
        assert mine == weigh("ben", "Hi", rule="near")
        settings = fd.WeightingSettings(rule="near", support=2, parameters={"power": 3.0})
        strong = weigh("ben", "Hi", weighting=settings)
        assert strong.similarity is not None and mine.similarity is not None
        # One prompt per support is near whatever the power, so similarities are powers too.
        assert strong.similarity == pytest.approx(mine.similarity**3, rel=1e-4)
        with pytest.raises(fd.UserError, match=r"'poer' is unknown; the rule near has power"):
            weigh("ben", "Hi", weighting=fd.WeightingSettings("near", parameters={"poer": 1.0}))
        # Hyperparameters belong to their rule.
        assert weigh("ben", "Hi", rule="cosine", weighting=fd.WeightingSettings(support=2)) == plain
    finally:
        fd.rules.remove("near")
    with pytest.raises(fd.UserError, match=r"weighting.rule: 'near' is unknown"):
        weigh("ben", "Hi", rule="near")


def test_functions_that_cannot_be_rules(seen: Seen):
    def cosine(query_BD):
        return query_BD[:, 0]

    # A built-in rule stays what it is.
    mine = seen.experiment.weigh("anna", "Hi", rule=cosine)
    assert mine == seen.experiment.weigh("anna", "Hi", rule="my_cosine")
    assert mine != seen.experiment.weigh("anna", "Hi", rule="cosine")
    fd.rules.remove("my_cosine")
    with pytest.raises(fd.UserError, match=r"'<lambda>' is not a name; use a named function"):
        seen.experiment.weigh("anna", "Hi", rule=lambda query_BD: query_BD[:, 0])

    def oracle(answer_B):
        return answer_B

    with pytest.raises(fd.UserError, match="oracle asks for 'answer_B'"):
        seen.experiment.weigh("anna", "Hi", rule=oracle)
    assert "oracle" not in fd.rules
    # The registry's own is still there.
    assert fd.rules.cosine is not cosine


def test_the_configurations_hyperparameters_stay_with_their_rule(made: Small):
    fd.rules.register(near)
    try:
        weighting = {"rule": "near", "support": 2, "parameters": {"power": 3.0}}
        config = fd.Config(**{**vars(made.config), "weighting": weighting})
        experiment = fd.Experiment(made.base, made.data, config)
        plain = experiment.weigh("anna", "Hi", rule="cosine")
        assert plain == experiment.weigh("anna", "Hi", weighting=made.config.weighting)
        assert experiment.weigh("anna", "Hi", rule=near) == experiment.weigh("anna", "Hi")
    finally:
        fd.rules.remove("near")


def test_modes_metrics_and_weighting_are_chosen(seen: Seen):
    weighting = fd.WeightingSettings(scale=1.0, support=2, scales="global")
    found = seen.experiment.evaluate(
        modes=["global", "instance"], metrics=["nll"], weighting=weighting
    )
    assert (found.modes, found.metrics) == (("global", "instance"), ("nll",))
    assert found["nll"]["global"].p == seen.scores["nll"]["global"].p
    assert found["nll"]["instance"].p != seen.scores["nll"]["instance"].p
    for line in found.instances:
        if line["mode"] == "instance":
            assert line["global_weight"] == pytest.approx(np.clip(line["similarity"], 0, 1))
        assert line["prediction"] is None
    with pytest.raises(fd.UserError, match=r"^eval.modes: 'globel': "):
        seen.experiment.evaluate(modes=["globel"])
    with pytest.raises(fd.UserError, match=r"^eval.metrics: 'bleu' is unknown"):
        seen.experiment.evaluate(metrics=["bleu"])
    with pytest.raises(fd.UserError, match=r"^eval.modes: \['base', 'base'\] names one twice"):
        seen.experiment.evaluate(modes=["base", "base"])


def test_an_untrained_experiment_is_of_no_round(made: Small):
    found = made.experiment().evaluate(modes=["base", "global"], metrics=["nll"])
    assert found.summary()["round"] is None
    # A fresh adapter changes nothing.
    assert found["nll"]["base"].ttp.value == pytest.approx(found["nll"]["global"].ttp.value)


def test_the_laboratory_tells_the_best_settings(seen: Seen):
    lab = seen.laboratory
    assert lab.best_settings == lab.best[0][1]
    assert {settings.rule for _, settings in lab.best} == {"constant", "cosine"}
    found = seen.experiment.evaluate(
        modes=["instance"], metrics=["nll"], weighting=lab.best_settings
    )
    row = next(row for row in lab.table if row["label"] == lab.best[0][0])
    assert found["nll"]["instance"].p.value == pytest.approx(row["exact_nll_P"])
    # Interpolated between mixing weights, so no further off than it says.
    off = lab.summary["interpolation_error"]["nll"]["P"]
    assert abs(row["test_nll_P"] - row["exact_nll_P"]) <= off + 1e-5


def test_the_laboratorys_table(seen: Seen):
    lab = seen.laboratory
    table = lab.table
    assert [row["label"] for row in table] == [f.candidate.label for f in lab.findings]
    assert {tuple(row) for row in table} == {tuple(table[0])}
    paper = next(row for row in table if row["label"] == "paper")
    assert (paper["rule"], paper["scale"], paper["support"], paper["bound"]) == (
        "cosine",
        0.5,
        2,
        False,
    )
    bound = next(row for row in table if row["label"] == "bound: knows the task")
    assert (bound["rule"], bound["scale"], bound["bound"]) == (None, None, True)
    assert bound["exact_nll_P"] is None
    for row, finding in zip(table, lab.findings, strict=True):
        for split, summaries in (("validation", finding.validation), ("test", finding.test)):
            for metric in ("nll", "exact_match"):
                for measure in ("P", "TTP"):
                    estimate = getattr(summaries[metric], measure.lower())
                    expected = estimate.columns(f"{split}_{metric}_{measure}")
                    assert {n: row[n] for n in expected} == pytest.approx(expected, nan_ok=True)
    frame = lab.to_pandas()
    assert list(frame.columns) == list(table[0])
    assert frame["test_nll_TTP"].tolist() == [row["test_nll_TTP"] for row in table]
    assert math.isnan(frame[frame["label"] == "local alone"]["exact_nll_P"].item())


def test_memory_and_folder_try_rules_alike(seen: Seen, durable: fd.Experiment):
    assert durable.run is not None
    found = durable.laboratory(["constant", fd.rules.cosine], **RULES)
    assert found.summary == seen.laboratory.summary
    assert found.best == seen.laboratory.best
    assert found.settings_csv == seen.laboratory.settings_csv
    assert found.table == seen.laboratory.table
    place = durable.run.path / "weigh"
    assert json.loads((place / "summary.json").read_text()) == json.loads(json.dumps(found.summary))
    assert (place / "settings.csv").read_bytes() == found.settings_csv.encode()
    with pytest.raises(fd.UserError, match=r"by: 'bleu' is unknown"):
        durable.laboratory(by=["bleu"])
    for finding in found.findings:
        other = dataclasses.replace(found.source.config, seed=9)
        source = dataclasses.replace(found.source, config=other)
        pair = [found, dataclasses.replace(seen.laboratory, source=source)]
        both = fd.over_seeds(pair, finding.candidate.label)
        for metric, one in finding.minus_global.items():
            assert both[metric]["P"].by_seed == pytest.approx([one.p.value] * 2)
            assert both[metric]["TTP"].by_seed == pytest.approx([one.ttp.value] * 2)


def test_an_export_from_memory(seen: Seen):
    adapters, base = seen.experiment.adapters, seen.experiment.prepared.base
    shared = read_adapter(seen.export / "global", base.model.config)
    assert bits(shared.adapter) == bits(adapters.global_C)
    for place, name in enumerate(("anna", "ben")):
        own = read_adapter(seen.export / "clients" / name, base.model.config)
        expected = [leaf[place] for leaf in jax.tree.leaves(adapters.local_C)]
        assert bits(own.adapter) == bits(expected)
        mixed = read_adapter(seen.export / "clients" / f"{name}-mixed", base.model.config)
        assert (shared.rank, own.rank, mixed.rank) == (2, 2, 4)
    seen.experiment.check_export(seen.export)
    with pytest.raises(fd.UserError, match=r"^out: \S+/one is not empty; name a new folder"):
        seen.experiment.export(seen.export)


def test_a_figure_of_an_evaluation(seen: Seen):
    figure = fd.plot(seen.scores, metric="nll")
    assert isinstance(figure, matplotlib.figure.Figure)
    points = {
        (round(float(x), 5), round(float(y), 5))
        for axes in figure.axes
        for line in axes.lines
        for x, y in np.asarray(line.get_xydata()).tolist()
    }
    for mode in seen.scores.modes:
        summary = seen.scores["nll"][mode]
        pair = round(summary.p.value, 5), round(summary.ttp.value, 5)
        assert pair in points, mode


def test_hyperparameters_are_tried_as_asked(seen: Seen):
    options = {**RULES, "exact": 0, "scales": 1.0}
    found = seen.experiment.laboratory(near, parameters={"near": {"power": [0.5, 2.0]}}, **options)
    tried = {row["parameters"] for row in csv.DictReader(io.StringIO(found.settings_csv))}
    assert tried == {'{"power": 0.5}', '{"power": 2.0}'}
    for wrong, words in (
        ({"near": {"pwr": [1.0]}}, "'pwr' is unknown; the rule near has power"),
        ({"l2": {"power": [1.0]}}, "the rule 'l2' is not tried"),
    ):
        with pytest.raises(fd.UserError, match=words):
            seen.experiment.laboratory(near, parameters=wrong, **options)
