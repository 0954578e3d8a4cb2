"""Rules that learn, or weigh tokens, from training to answers: one prompt and many agree."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.cli.program import main
from tests.e2e.small_runs import SETTINGS, write_data
from tests.small_experiment import Small

NEW = ("held_out_gate", "least_entropy", "learned_layers", "tokenwise", "token_gate")
# Adapters that differ enough for weights to matter.
MORE = [
    *("--fed.learning_rate", "0.1", "--fed.local_epochs", "3", "--eval.max_new_tokens", "5"),
    *("--eval.metrics", "[nll, exact_match, rouge1]"),
]


def made(folder: Path, validation: int) -> Small:
    write_data(folder)
    options = [
        *("--data.path", str(folder)),
        *SETTINGS,
        "--data.validation",
        str(validation),
        *MORE,
    ]
    return Small(
        fd.load_base("tiny", dtype="float32"),
        fd.load_federation(str(folder), validation=validation),
        fd.load_config(None, options),
        options,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> fd.Experiment:
    experiment = made(tmp_path_factory.mktemp("data"), 2).experiment()
    experiment.train()
    return experiment


@pytest.fixture(scope="module")
def unheld(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    options = made(folder / "data", 0).options
    assert main(["train", "--no-eval", "--run-dir", str(folder / "run"), *options]) == 0
    return folder / "run"


# Beams reorder rows, which matters to weights by token.
@pytest.mark.parametrize(
    ("rule", "decoding"), [*((rule, "greedy") for rule in NEW), ("token_gate", "beam")]
)
def test_one_prompt_is_weighed_and_answered_as_many(trained: fd.Experiment, rule, decoding):
    experiment = trained
    config = experiment.config
    eval_ = dataclasses.replace(config.eval, decoding=decoding, beams=2)
    experiment.config = dataclasses.replace(config, eval=eval_)
    try:
        found = experiment.evaluate(rule=rule, modes=["global", "instance"])
        lines = [line for line in found.instances if line["mode"] == "instance"]
        assert len(lines) == 4
        for line in lines:
            prompt = experiment.prepared.federation.test[line["index"]].instruction
            weight = experiment.weigh(line["client"], prompt, rule=rule)
            assert np.mean(weight.local_weight) == pytest.approx(line["local_weight"], abs=1e-4)
            assert np.mean(weight.global_weight) == pytest.approx(line["global_weight"], abs=1e-4)
            answer = experiment.generate(line["client"], prompt, mode="instance", rule=rule)
            assert answer.text == line["prediction"]
            assert np.mean(answer.weight.local_weight) == pytest.approx(
                line["local_weight"], abs=1e-4
            )
        assert len({round(line["local_weight"], 4) for line in lines}) > 1
    finally:
        experiment.config = config


@pytest.mark.parametrize("rule", ["held_out_gate", "learned_layers", "token_gate"])
def test_a_run_that_held_nothing_out(unheld: Path, capsys, rule: str):
    run = ["--run-dir", str(unheld), "--weighting.rule", rule]
    asked = ["generate", *run, "--client", "anna", "--prompt", "Hi", "--mode", "instance"]
    for command in (["eval", *run], asked):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for word in ("data.validation", rule, "'anna'", "weighting.learn_from"):
            assert word in error
    # Unless it may use what it trained on.
    assert main([*asked, "--weighting.learn_from", "training"]) == 0
    # Other rules and modes need nothing.
    assert main([*asked[:-1], "global"]) == 0
