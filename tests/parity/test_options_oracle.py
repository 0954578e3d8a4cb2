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

pytestmark = pytest.mark.usefixtures("shared_steps")

ROUNDS = 3
# The leaves that methods of one common adapter train in each round.
LEAVES = {
    "fedit": lambda number: "ab",
    "ffa_lora": lambda number: "b",
    "rolora": lambda number: "ba"[number % 2],
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(Path(tmp_path_factory.mktemp("base")))


def check(pair: Pair, setting: Setting, method: str, server: Any = plain, **fed: Any) -> None:
    """A method with these options is the oracle, and is another one without."""
    experiment = pair.experiment(method, rounds=ROUNDS, **fed)
    start, rounds = adapter_of(experiment.state), rounds_of(experiment)
    oracle = run_shared(setting, start, rounds, LEAVES[method], server)
    without = run_shared(pair.setting(), start, rounds, LEAVES[method])
    assert gap(oracle.server[-1], without.server[-1]) > 1e-3, "the option changes too little"
    for done in experiment.rounds():
        assert_losses(done, oracle.losses[done.number])
        assert_adapter(adapter_of(done.state), oracle.server[done.number])


@pytest.mark.parametrize("method", LEAVES)
@pytest.mark.parametrize("strength", [0.5, 50.0])
def test_proximal(pair: Pair, method: str, strength: float):
    check(pair, pair.setting(proximal=strength), method, proximal=strength)


def test_cosine_over_rounds(pair: Pair):
    check(pair, pair.setting(rate=cosine(ROUNDS)), "fedit", rate_over_rounds="cosine")


@pytest.mark.parametrize(
    ("kind", "rate"),
    [("momentum", 1.0), ("momentum", 0.5), ("adam", 0.01), ("yogi", 0.01), ("adagrad", 0.01)],
)
def test_server_optimizer(pair: Pair, kind: str, rate: float):
    options = {"server_optimizer": kind, "server_learning_rate": rate}
    check(pair, pair.setting(), "fedit", ServerOptimizer(kind, rate), **options)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_server_optimizer_of_leaves_in_turn(pair: Pair, kind: str):
    """A leaf that a round does not send stays as it is, and so does what is known of it."""
    options = {"server_optimizer": kind, "server_learning_rate": 0.5}
    check(pair, pair.setting(), "rolora", ServerOptimizer(kind, 0.5), **options)
