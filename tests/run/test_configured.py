"""Every field of the configuration reaches what it sets, and what a run works on has a digest."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from feddpa_jax.config import Config, load_config
from feddpa_jax.data.folders import load_federation
from feddpa_jax.files.result_files import file_names
from feddpa_jax.run.evaluating import check_rule
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.inputs import Prepared, load_data, make_lora, prepare, training_data
from feddpa_jax.run.opening import checked
from feddpa_jax.training.participation import ALWAYS
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.types import TokenizedExample, UserError

SETTINGS = [
    *("--model.path", "tiny", "--model.dtype", "float32", "--data.max_length", "256"),
    *("--data.max_train", "5", "--data.validation", "2", "--data.max_test", "1", "--seed", "3"),
]


def config_of(*more: str) -> Config:
    return load_config(None, [*SETTINGS, *more])


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(config_of())


@pytest.mark.parametrize(("level", "support", "warned"), [(0.05, 18, True), (0.05, 19, False)])
def test_too_small_a_support_for_a_rule_is_told(level, support, warned, caplog):
    config = config_of(
        *("--weighting.rule", "calibrated_hard", "--weighting.support", str(support)),
        *("--weighting.parameters", f"{{level: {level}}}"),
    )
    check_rule(config)
    message = (
        "weighting.support: calibrated_hard cannot tell instances apart by 18 training prompts, "
        "and gives all the same weight; 19 or more are needed"
    )
    assert ([message] if warned else []) == [record.message for record in caplog.records]


def test_data_follow_the_seed_and_the_limits():
    """Another seed gives other examples of the same number, the same seed the same ones."""
    found = load_data(config_of())
    assert found == load_federation("sample", seed=3, max_train=5, validation=2, max_test=1)
    assert [(len(c.train), len(c.validation)) for c in found.clients] == [(3, 2)] * 8
    assert len(found.test) == 8
    other = load_data(config_of("--seed", "4"))
    for one, two in zip(found.clients, other.clients, strict=True):
        assert one.name == two.name
        assert one.train != two.train and one.validation != two.validation
    assert found.test != other.test


FIELDS = [
    *("--fed.local_epochs", "7", "--fed.batch_size", "6", "--fed.micro_batch_size", "2"),
    *("--data.shuffle", "false", "--fed.participation", "0.25", "--fed.clients_per_step", "3"),
    *("--fed.block_tokens", "640", "--fed.rounds", "11", "--fed.method", "feddpa_f"),
]


def test_every_field_reaches_the_training_data(prepared: Prepared):
    data = training_data(config_of(*FIELDS), prepared)
    assert data.names == prepared.names == tuple(f"client_{k}" for k in range(8))
    assert data.examples == prepared.training
    expected = {
        **{"seed": 3, "epochs": 7, "batch_size": 6, "micro_batch_size": 2, "shuffle": False},
        **{"participation": 0.25, "clients_per_step": 3, "block_tokens": 640, "shards": 2},
    }
    assert {name: getattr(data, name) for name in expected} == expected


COHORTS = [
    *("--fed.cohort", "3", "--fed.dropout", "0.2", "--fed.availability", "markov"),
    *("--fed.availability_share", "0.25", "--fed.availability_period", "7"),
]


def test_the_settings_of_cohorts(prepared: Prepared):
    data = training_data(config_of(*COHORTS), prepared)
    assert (data.cohort, data.dropout, data.participation) == (3, 0.2, 1.0)
    assert data.availability == ("markov", 0.25, 7, None)
    # One client with all examples: it is always there.
    pooled = training_data(config_of(*COHORTS, "--fed.method", "centralized"), prepared)
    assert (pooled.cohort, pooled.dropout, pooled.availability) == (None, 0.0, ALWAYS)
    assert training_data(config_of("--fed.cohort", "8"), prepared).cohort == 8
    with pytest.raises(UserError, match=r"fed\.cohort: 9 of 8 clients; give at most 8"):
        training_data(config_of("--fed.cohort", "9"), prepared)


def test_settings_of_cohorts_that_do_not_fit_together():
    with pytest.raises(UserError, match=r"fed\.cohort: 3 and fed\.participation: 0\.5 both say"):
        config_of("--fed.cohort", "3", "--fed.participation", "0.5")
    for option in COHORTS[6::2]:
        with pytest.raises(UserError, match=f"{option[2:]}: all clients are always available"):
            checked(config_of(option, "1"))
    assert checked(config_of(*COHORTS)).fed.cohort == 3


def test_what_is_not_said_follows(prepared: Prepared):
    data = training_data(
        config_of("--fed.batch_size", "6", "--fed.micro_batch_size", "null"), prepared
    )
    assert data.micro_batch_size == 6
    assert (data.block_tokens, data.clients_per_step) == (prepared.tokens_at_once, None)


def test_centralized_training_pools_the_clients(prepared: Prepared):
    data = training_data(config_of("--fed.method", "centralized"), prepared)
    assert data.names == ("pooled",)
    assert data.examples == (tuple(e for own in prepared.training for e in own),)


def test_fresh_adapters_are_those_of_the_configuration(prepared: Prepared):
    settings = ["--lora.rank", "3", "--lora.alpha", "7", "--lora.targets", "[k_proj, up_proj]"]
    new = make_lora(config_of(*settings), prepared).fresh
    adapter, model = new(jax.random.key(0)), prepared.base.model.config
    assert {target: pair["a"].shape for target, pair in adapter.items()} == {
        target: (model.layers, model.target_sizes()[target][0], 3)
        for target in ("k_proj", "up_proj")
    }
    assert not np.array_equal(adapter["k_proj"]["a"], new(jax.random.key(1))["k_proj"]["a"])


def test_the_digest_is_of_everything_that_is_trained_and_tested_on(prepared: Prepared):
    first, *rest = prepared.training[2]
    changed = first.tokens_T.copy()
    changed[-1] += 1

    def with_first(example: TokenizedExample) -> Prepared:
        training = list(prepared.training)
        training[2] = (example, *rest)
        return prepared._replace(training=tuple(training))

    def federation(**changes: Any) -> Prepared:
        return prepared._replace(federation=dataclasses.replace(prepared.federation, **changes))

    clients = prepared.federation.clients
    others = [
        with_first(first._replace(tokens_T=changed)),
        with_first(first._replace(prompt_length=first.prompt_length - 1)),
        prepared._replace(training=prepared.training[::-1]),
        prepared._replace(training=(prepared.training[0][1:], *prepared.training[1:])),
        federation(test=prepared.federation.test[1:]),
        federation(clients=(dataclasses.replace(clients[0], name="other"), *clients[1:])),
    ]
    digests = [one.data_digest() for one in [prepared, *others]]
    assert len(set(digests)) == len(digests)
    assert prepare(config_of()).data_digest() == digests[0]


def test_longer_than_the_model_and_too_short_for_the_data():
    limit = str(prepare(config_of()).base.model.config.max_positions)
    assert prepare(config_of("--data.max_length", limit))
    with pytest.raises(
        UserError, match=rf"data\.max_length: .* is more than the {limit} positions"
    ):
        prepare(config_of("--data.max_length", str(int(limit) + 1)))
    with pytest.raises(UserError, match=r"client 'client_0': no example is left .* raise it"):
        prepare(config_of("--data.max_length", "20"))


def test_what_may_differ_in_a_run_folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start(config_of())
    run.check_same_training(config_of())
    free = ["--data.max_test", "4", "--eval.beams", "2", "--weighting.scale", "0.25"]
    run.check_same_training(config_of(*free))
    for name, value in (("data.max_train", "4"), ("seed", "4"), ("fed.learning_rate", "0.5")):
        with pytest.raises(UserError, match=name):
            run.check_same_training(config_of(f"--{name}", value))


def test_names_of_files_differ_where_case_alone_does():
    assert file_names(["a", "A", "a", "b c"]) == ["a", "A_2", "a_3", "b_c"]


def test_a_training_datas_defaults():
    data = TrainingData(("x",), ((),), 0, 1, 2, 2)
    assert data.shuffle and data.participation == 1.0 and data.clients_per_step is None
