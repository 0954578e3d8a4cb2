"""The loop around the training: keys, settings, tokens and lines of metrics, by hand."""

import dataclasses
from typing import Any, cast

import jax
import numpy as np
import pytest

import feddpa_jax.run.beginning as begin_module
import feddpa_jax.run.loop as train_module
from feddpa_jax.config import Config, load_config
from feddpa_jax.federated.clients import ClientParts, MemoryStore
from feddpa_jax.federated.method import FedState, Method, Part, Phase
from feddpa_jax.federated.traffic import traffic
from feddpa_jax.run import loop
from feddpa_jax.run.beginning import (
    make_federation,
    never_played,
    run_key,
    server_parts,
    total_rounds,
)
from feddpa_jax.run.client_files import ClientFiles
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.identity import identity
from feddpa_jax.run.inputs import Prepared, make_lora, make_method, prepare, training_data
from feddpa_jax.run.loop import play_round, round_rate, round_tokens, tokens_of_rounds
from feddpa_jax.run.round import metrics_line
from feddpa_jax.training.engine import PhaseMetrics

SETTINGS = [
    *("--model.path", "tiny", "--model.dtype", "float32", "--data.max_length", "256"),
    *("--data.max_train", "3", "--data.max_test", "1", "--seed", "3", "--fed.rounds", "4"),
]


def config_of(*more: str) -> Config:
    return load_config(None, [*SETTINGS, *more])


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(config_of())


def test_every_seed_and_round_has_its_key():
    configs = [config_of("--seed", str(seed)) for seed in range(3)]
    keys = [run_key(config, number) for config in configs for number in (-1, 0, 1, 2)]
    words = {jax.random.key_data(key).tobytes() for key in keys}
    assert len(words) == 12
    same = run_key(config_of("--seed", "1"))
    assert (
        jax.random.key_data(same).tolist() == jax.random.key_data(run_key(configs[1], -1)).tolist()
    )


def test_every_field_reaches_the_engine(prepared: Prepared, tmp_path, monkeypatch):
    seen: dict[str, Any] = {}
    monkeypatch.setattr(begin_module, "make_engine", lambda model, **given: seen.update(given))
    config = config_of(
        *("--lora.rank", "4", "--lora.alpha", "6", "--lora.dropout", "0.125"),
        *("--fed.learning_rate", "0.002", "--fed.max_grad_norm", "0.75"),
        *("--fed.aggregation", "examples", "--model.remat", "cheap"),
        *("--fed.clients_in_memory", "5"),
    )
    parts = make_federation(config, prepared, RunFolder(tmp_path))
    expected = {
        **{"scale": 1.5, "dropout": 0.125, "learning_rate": 0.002, "max_grad_norm": 0.75},
        **{"remat": "cheap", "base_mode": config.mesh.base},
    }
    assert {name: seen[name] for name in expected} == expected
    assert seen["mesh"] is prepared.mesh
    assert parts.aggregation == "examples"
    assert parts.names == prepared.names
    assert parts.id_C.tolist() == list(training_data(config, prepared).ids)
    assert len(set(parts.id_C.tolist())) == 8
    assert isinstance(parts.store, ClientFiles)
    assert (parts.store.folder, parts.store.cached) == (tmp_path / "checkpoints" / "clients", 5)
    make_federation(config_of(), prepared, RunFolder(tmp_path))
    assert seen["remat"] == "none"


def test_fields_of_fed_reach_the_method_that_asks_for_them(prepared: Prepared):
    given = ("--fed.local_weight", "0.3", "--fed.frozen_branch_gradient", "detached")
    for settings, expected in ((given, (0.7, True, 0.3)), ((), (0.5, False, 0.5))):
        local, _ = make_method(config_of(*settings), prepared).phases
        shared, own = local.objective.mix({"global": {}, "local": {}})
        found = (float(shared.weight), shared.detached, float(own.weight))
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("method", "rounds", "factors"),
    [
        # Of all clients' tokens: FedDPA-T has its local phase from the second round on.
        ("feddpa_t", 4, [1, 2, 2, 2]),
        ("feddpa_f", 5, [1, 1, 1, 1, 1]),
        ("fedit", 4, [1, 1, 1, 1]),
        ("fedlora", 5, [1, 1, 1, 1, 1]),
        ("local", 4, [1, 1, 1, 1]),
        ("centralized", 4, [1, 1, 1, 1]),
        # A first phase of everybody in round 0; what searches after the last round trains nothing.
        ("fdlora", 5, [2, 1, 1, 1, 0]),
        ("fedlease", 4, [2, 1, 1, 1]),
    ],
)
def test_rounds_and_their_tokens(prepared: Prepared, method: str, rounds: int, factors: list[int]):
    config = config_of("--fed.method", method, "--fed.local_epochs", "2")
    data = training_data(config, prepared)
    whole = 2 * sum(len(e.tokens_T) for own in prepared.training for e in own)
    assert total_rounds(config) == rounds
    given = make_method(config, prepared), data
    tokens = [round_tokens(config, *given, number) for number in range(rounds)]
    assert tokens == [factor * whole for factor in factors]


@pytest.mark.parametrize(
    ("method", "rounds", "expected"),
    [
        ("feddpa_t", 1, [("local",)]),
        ("feddpa_t", 2, []),
        ("rolora", 1, [("global.a",)]),
        ("rolora", 2, []),
        ("feddpa_f", 1, []),
    ],
)
def test_phases_that_no_round_has(prepared: Prepared, method: str, rounds: int, expected: list):
    config = config_of("--fed.method", method)
    found = never_played(make_method(config, prepared), rounds)
    assert [phase.train for phase in found] == expected


def test_only_participants_count_except_in_a_personalization(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
):
    config = config_of("--fed.method", "feddpa_f", "--fed.participation", "0.25")
    data, method = training_data(config, prepared), make_method(config, prepared)
    for number in range(4):
        there = data.participants(number)
        assert len(there) == 2
        assert round_tokens(config, method, data, number) == sum(data.tokens(int(c)) for c in there)
    everybody = sum(data.tokens(c) for c in range(8))
    assert round_tokens(config, method, data, 4) == everybody
    amount = sum(round_tokens(config, method, data, number) for number in range(5))
    assert tokens_of_rounds(config, method, data, range(5)) == amount
    # Where all of them would be too many draws, two rounds stand for all but the last one.
    monkeypatch.setattr(loop, "MOST_DRAWS", 2 * 8 + 7)
    mean = sum(round_tokens(config, method, data, number) for number in (0, 3)) / 2
    assert 4 * mean + everybody != amount
    assert tokens_of_rounds(config, method, data, range(5)) == 4 * mean + everybody
    config = dataclasses.replace(config, fed=dataclasses.replace(config.fed, method="fedlease"))
    some = sum(data.tokens(int(c)) for c in data.participants(0))
    method = make_method(config, prepared)
    assert round_tokens(config, method, data, 0) == everybody + some


def test_a_line_of_metrics_by_hand():
    metrics = {
        "local": PhaseMetrics({"a": [4.0, 1.0, 1.0], "b": [8.0]}, 100, 160),
        "global": PhaseMetrics({"a": [3.0, 1.0], "b": [5.0, 0.5, 0.5]}, 30, 50),
    }
    line = metrics_line(7, metrics, (36, 24), 1.23456)
    assert line == {
        "round": 7,
        "loss": 2.0,  # of the global phase: (2 + 2) / 2
        "phases": {
            "local": {
                "a": {"first": 4.0, "mean": 2.0, "last": 1.0},
                "b": {"first": 8.0, "mean": 8.0, "last": 8.0},
            },
            "global": {
                "a": {"first": 3.0, "mean": 2.0, "last": 1.0},
                "b": {"first": 5.0, "mean": 2.0, "last": 0.5},
            },
        },
        "updates": 9,
        "real_tokens": 130,
        "computed_tokens": 210,
        "seconds": 1.235,
        "client_bytes_received": 36,
        "client_bytes_sent": 24,
    }
    fusion = PhaseMetrics({"a": [2.0, 1.0]}, 0, 0)
    assert metrics_line(7, {**metrics, "fusion": fusion}, (36, 24), 1.0)["updates"] == 9
    alone = metrics_line(7, {"local": metrics["local"]}, (0, 0), 1.0)
    assert alone["loss"] == 5.0
    assert alone["client_bytes_sent"] == alone["client_bytes_received"] == 0


def test_a_personalization_follows_the_last_round_with_everybody(prepared: Prepared, monkeypatch):
    config = config_of("--fed.method", "feddpa_f", "--fed.participation", "0.25")
    data, method = training_data(config, prepared), make_method(config, prepared)
    played = []

    def note(method, federation, state, data, phases, *, key, learning_rate):
        names = [phase.name for phase in phases]
        round_data = data(names == ["personalization"])
        words = jax.random.key_data(key).tolist()
        played.append((names, round_data.number, round_data.participants.tolist(), words))
        return state, {}

    monkeypatch.setattr(train_module, "play_phases", note)
    state: Any = FedState({}, ClientParts((), MemoryStore()))
    for number in (3, 4):
        play_round(method, cast(Any, None), state, data, (), config, number)
    words = [jax.random.key_data(run_key(config, number)).tolist() for number in (3, 4)]
    assert played == [
        (["global"], 3, data.participants(3).tolist(), words[0]),
        (["personalization"], 4, list(range(8)), words[1]),
    ]


def test_the_rate_may_fall_over_the_rounds():
    """Half a cosine: 1, (1 + cos 45)/2, 1/2, ... times the rate; the last phases have it whole."""
    plain = config_of("--fed.learning_rate", "0.5")
    assert [round_rate(plain, number) for number in range(5)] == [0.5] * 5
    falls = config_of("--fed.learning_rate", "0.5", "--fed.rate_over_rounds", "cosine")
    found = [round_rate(falls, number) for number in range(5)]
    np.testing.assert_allclose(found, [0.5, 0.4267767, 0.25, 0.0732233, 0.5], rtol=1e-6)


def test_traffic_follows_from_the_leaves(prepared: Prepared):
    """The global adapter travels both ways once a round; the final one is received once more."""
    sizes = prepared.base.model.config
    rows = sum(sum(sizes.target_sizes()[target]) for target in ("q_proj", "v_proj"))
    adapter = 4 * 8 * sizes.layers * rows
    moved = {}
    for name in ("feddpa_t", "feddpa_f", "fedit", "local"):
        config = config_of("--fed.method", name)
        method, lora = make_method(config, prepared), make_lora(config, prepared)
        phases = {number: method.phases_of(number, 4) for number in range(5)}
        moved[name] = [
            traffic(method, lora, phases[number], np.arange(2), phases.get(number - 1))
            for number in (0, 1, 4)
        ]
    assert moved["feddpa_t"] == moved["fedit"] == [(adapter, adapter)] * 2 + [(0, 0)]
    assert moved["feddpa_f"] == [(adapter, adapter)] * 2 + [(adapter, 0)]
    assert moved["local"] == [(0, 0)] * 3
    # By the names of its leaves it is the same adapter.
    lora = make_lora(config_of("--fed.method", "fedit"), prepared)
    by_leaf = Phase("global", train=("global.a", "global.b"))
    method = Method({"global": Part("server", lora.fresh)}, (by_leaf,))
    assert traffic(method, lora, method.phases, np.arange(2)) == (adapter, adapter)


def test_parts_keep_their_names_in_checkpoints():
    """Earlier versions had one part, and wrote a line below its name."""
    assert server_parts({"global_": 1}) == {"global": 1}
    assert server_parts({"global": 1, "own_": 2}) == {"global": 1, "own_": 2}


def test_a_checkpoint_is_of_one_run(prepared: Prepared):
    found = identity(config_of("--lora.rank", "4", "--lora.alpha", "6"), prepared)
    assert (
        found.items()
        >= {
            "method": "feddpa_t",
            "rank": 4,
            "alpha": 6.0,
            "targets": ["q_proj", "v_proj"],
            "base": prepared.base.fingerprint,
            "clients": [f"client_{k}" for k in range(8)],
            "seed": 3,
        }.items()
    )
    other = dataclasses.replace(config_of(), seed=4)
    assert identity(other, prepared)["seed"] == 4
    assert np.array(found["clients"]).shape == (8,)
