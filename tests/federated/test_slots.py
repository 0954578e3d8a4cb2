"""Participants keep their share wherever they lie on the client axis, which may have gaps."""

from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.devices.mesh import single_mesh
from feddpa_jax.federated.method import Parts, global_phase, merge_metrics
from feddpa_jax.training.engine import PhaseMetrics
from feddpa_jax.training.rounds import RoundData


@pytest.mark.parametrize(("aggregation", "expected"), [("uniform", 15.0), ("examples", 17.5)])
def test_the_mean_is_over_the_participants_alone(aggregation: str, expected: float):
    """Clients 4 and 7 have 1 and 3 examples and lie in places 0 and 2; place 1 is empty."""

    def train(copies_C: Any, chunk: Any, *, key: jax.Array) -> Any:
        # What each place was trained to: 10 for client 4, 20 for client 7.
        trained_C = jax.tree.map(
            lambda leaf: jnp.zeros_like(leaf) + jnp.array([10.0, 1000.0, 20.0])[:, None], copies_C
        )
        return trained_C, PhaseMetrics({}, 0, 0)

    chunk = SimpleNamespace(total_C=np.zeros(3), slots=np.array([0, 2]), members=np.array([4, 7]))
    parts = SimpleNamespace(
        engine=SimpleNamespace(mesh=single_mesh(), train=train), aggregation=aggregation
    )
    data = SimpleNamespace(
        participants=np.array([4, 7]), examples=np.array([1, 3]), chunks=lambda phase: [chunk]
    )
    mean, _ = global_phase(
        cast(Parts, parts),
        cast(Any, {"a": jnp.zeros(2)}),
        cast(RoundData, data),
        key=jax.random.key(0),
    )
    np.testing.assert_allclose(cast(Any, mean)["a"], expected)


def test_chunks_of_a_phase_add_up():
    one, two = PhaseMetrics({"x": [1.0]}, 3, 7), PhaseMetrics({"y": [2.0]}, 5, 11)
    assert merge_metrics([one, two]) == PhaseMetrics({"x": [1.0], "y": [2.0]}, 8, 18)
