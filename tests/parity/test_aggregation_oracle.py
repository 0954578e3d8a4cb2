"""Experiments with methods that differ in the server's aggregation, against their oracles."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest

import feddpa_jax as fd
from tests.parity.experiment_pair import (
    ALPHA,
    TARGETS,
    Pair,
    adapter_of,
    assert_adapter,
    assert_losses,
    effective,
    rounds_of,
)
from tests.parity.reference_aggregation import (
    Trace,
    product,
    run_fedex_lora,
    run_fedsa_lora,
    run_ffa_lora,
    run_flexlora,
    run_rolora,
    run_shared,
)
from tests.parity.reference_loop import Adapter

pytestmark = pytest.mark.usefixtures("shared_steps")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(Path(tmp_path_factory.mktemp("base")))


def play(experiment: fd.Experiment, oracle: Trace) -> list[fd.Round]:
    """The experiment's rounds, whose losses are the oracle's."""
    done = list(experiment.rounds())
    assert len(done) == len(oracle.losses) == 3
    for each in done:
        assert_losses(each, oracle.losses[each.number])
    return done


@pytest.mark.parametrize("aggregation", ["uniform", "examples"])
@pytest.mark.parametrize(
    ("method", "run"), [("fedit", run_shared), ("ffa_lora", run_ffa_lora), ("rolora", run_rolora)]
)
def test_one_common_adapter(pair: Pair, method: str, run, aggregation: str):
    experiment = pair.experiment(method, aggregation=aggregation)
    start = adapter_of(experiment.state)
    oracle = run(pair.setting(aggregation=aggregation), start, rounds_of(experiment))
    for done in play(experiment, oracle):
        assert_adapter(adapter_of(done.state), oracle.server[done.number])


@pytest.mark.parametrize("shared", ["a", "b"])
def test_fedsa_lora(pair: Pair, shared: str):
    experiment = pair.experiment("fedsa_lora", options={"sends": shared})
    own = [adapter_of(experiment.state, client) for client in range(3)]
    oracle = run_fedsa_lora(pair.setting(), own[0], own, rounds_of(experiment), shared)
    for done in play(experiment, oracle):
        for client in range(3):
            ours = adapter_of(done.state, client)
            assert_adapter(ours, oracle.clients[done.number][client])


def scaled(adapter: Adapter) -> Mapping[str, np.ndarray]:
    """s A B of every map."""
    rank = adapter[TARGETS[0]]["a"].shape[-1]
    return {target: ALPHA / rank * dense for target, dense in product(adapter).items()}


def assert_dense(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> None:
    """Every map's update is the oracle's."""
    assert ours.keys() == theirs.keys()
    for target, dense_LDE in theirs.items():
        np.testing.assert_allclose(ours[target], dense_LDE, atol=1e-4, err_msg=target)


# Someone of the largest rank takes part in the first two rounds: the mean has that rank.
@pytest.mark.parametrize("ranks", [(4, 2, 3), (4, 4, 4)])
def test_flexlora(pair: Pair, ranks: tuple[int, ...]):
    experiment = pair.experiment("flexlora", lora={"ranks": ranks})
    starts = [
        {t: {"a": own["a"][..., :rank], "b": own["b"][:, :rank]} for t, own in held.items()}
        for held, rank in zip(first_of(experiment), ranks, strict=True)
    ]
    oracle = run_flexlora(pair.setting(), starts, rounds_of(experiment))
    for done in play(experiment, oracle):
        for client, ours in enumerate(effective(experiment, done.state)):
            assert_dense(ours, scaled(oracle.clients[done.number][client]))


def first_of(experiment: fd.Experiment) -> list[Adapter]:
    """The adapter that each client starts with, at the largest rank: an A of its own, and no B."""
    own, empty = experiment.state.clients.take(range(3))["first"], experiment.state.server["global"]
    return [
        {t: {"a": own[t]["a"][c], "b": np.asarray(empty[t]["b"])} for t in TARGETS}
        for c in range(3)
    ]


def test_fedex_lora(pair: Pair):
    experiment = pair.experiment("fedex_lora")
    start = {t: dict(own) for t, own in experiment.state.server["global"].items()}
    start = jax.tree.map(np.asarray, start)
    oracle = run_fedex_lora(pair.setting(), start, rounds_of(experiment))
    for done in play(experiment, oracle):
        factors = oracle.server[done.number]
        assert_adapter(done.state.server["global"], factors)
        residual, held = oracle.dense[done.number], scaled(factors)
        exact = {target: held[target] + residual[target] for target in TARGETS}
        for ours in effective(experiment, done.state):
            assert_dense(ours, exact)
