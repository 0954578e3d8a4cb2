"""Rules that learn, or weigh tokens, from training to answers: one prompt and many agree."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.cli.program import main
from feddpa_jax.weighting.rule import RULES
from tests.docs.pages import ROOT, blocks
from tests.e2e.small_runs import SETTINGS, write_data
from tests.small_experiment import Small

pytestmark = pytest.mark.usefixtures("shared_steps")

NEW = ("held_out_gate", "least_entropy", "learned_layers", "tokenwise", "token_gate")
# Of the page on what a rule may ask for.
GUIDE = ROOT / "docs/guides/evidence_for_rules.md"
OF_GUIDE = ("surest", "best_for_my_own", "tokens_i_know", "shared_words", "surer_than_others")
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


@pytest.fixture(scope="module", autouse=True)
def of_guide() -> Iterator[None]:
    """Registers the rules of the guide: each a block of under ten lines besides its imports."""
    names: dict = {}
    for text in blocks(GUIDE, "python"):
        exec(compile(text, str(GUIDE), "exec"), names)
        assert len(re.split(r"^def \w+\(", text, flags=re.MULTILINE)[-1].splitlines()) < 10
    assert tuple(name for name in RULES if name in names) == OF_GUIDE
    yield
    for name in OF_GUIDE:
        RULES.remove(name)


# Beams reorder rows, which matters to weights by token.
@pytest.mark.parametrize(
    ("rule", "decoding"),
    [*((rule, "greedy") for rule in (*NEW, *OF_GUIDE)), ("token_gate", "beam")],
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
        # Each client once, and each instance.
        for line in (lines[0], lines[3]):
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


def test_the_laboratory_has_the_weights_of_an_evaluation(trained: fd.Experiment):
    """Of the guide's rules, each at the setting that was chosen: their weights of the test."""
    found = trained.laboratory(OF_GUIDE, scales=[0.5, 1.0], layers=[2], exact=0, choose="pooled")
    assert {settings.rule for _, settings in found.best} == set(OF_GUIDE)
    by_label = {finding.candidate.label: finding for finding in found.findings}
    rows = found.settings_csv.splitlines()
    for label, settings in found.best:
        scores = trained.evaluate(weighting=settings, modes=["instance"], metrics=["nll"])
        expected = [line["local_weight"] for line in scores.instances]
        weight_CJ = by_label[label].candidate.weight_CJ
        np.testing.assert_allclose(weight_CJ[:, -2:].reshape(-1), expected, atol=1e-4)
    # Two scales to either side, unless a rule gives weights; of one that reads texts as of others.
    tried = {rule: sum(row.startswith(f"{rule},") for row in rows) for rule in OF_GUIDE}
    assert tuple(tried.values()) == (1, 1, 4, 4, 4)


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
