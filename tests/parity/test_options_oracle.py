"""Experiments with FedProx, a rate by round and server optimizers, against their oracles."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity.experiment_pair import (
    Pair,
    adapter_of,
    assert_adapter,
    assert_losses,
    rounds_of,
)
from tests.parity.reference_aggregation import Setting, plain, run_shared
from tests.parity.reference_options import ServerOptimizer, cosine
from tests.parity.tiny_federation import gap

ROUNDS = 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(Path(tmp_path_factory.mktemp("base")))


def check(pair: Pair, setting: Setting, server: Any = plain, **fed: Any) -> None:
    """FedIT with these options is the oracle."""
    experiment = pair.experiment("fedit", rounds=ROUNDS, **fed)
    start = adapter_of(experiment.state)
    rounds = rounds_of(experiment)
    oracle = run_shared(setting, start, rounds, server=server)
    without = run_shared(pair.setting(), start, rounds)
    assert gap(oracle.server[-1], without.server[-1]) > 1e-3, "the option changes too little"
    for done in experiment.rounds():
        assert_losses(done, oracle.losses[done.number])
        assert_adapter(adapter_of(done.state), oracle.server[done.number])


@pytest.mark.parametrize("strength", [0.5, 50.0])
def test_proximal(pair: Pair, strength: float):
    check(pair, pair.setting(proximal=strength), proximal=strength)


def test_cosine_over_rounds(pair: Pair):
    check(pair, pair.setting(rate=cosine(ROUNDS)), rate_over_rounds="cosine")


@pytest.mark.parametrize(
    ("kind", "rate"),
    [("momentum", 1.0), ("momentum", 0.5), ("adam", 0.01), ("yogi", 0.01), ("adagrad", 0.01)],
)
def test_server_optimizer(pair: Pair, kind: str, rate: float):
    server = ServerOptimizer(kind, rate)
    check(pair, pair.setting(), server, server_optimizer=kind, server_learning_rate=rate)
