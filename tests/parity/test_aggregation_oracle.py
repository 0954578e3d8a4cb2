"""Experiments with methods that differ in the server's aggregation, against their oracles."""

from pathlib import Path

import jax
import numpy as np
import pytest

from tests.parity.experiment_pair import Pair, assert_adapter, assert_losses, rounds_of
from tests.parity.reference_aggregation import run_shared


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(Path(tmp_path_factory.mktemp("base")))


def test_fedit(pair: Pair):
    experiment = pair.experiment("fedit")
    start = jax.tree.map(np.asarray, experiment.state.global_)
    rounds = rounds_of(experiment)
    oracle = run_shared(pair.setting(), start, rounds)
    for done in experiment.rounds():
        assert_losses(done, oracle.losses[done.number], "global")
        assert_adapter(done.state.global_, oracle.server[done.number])
