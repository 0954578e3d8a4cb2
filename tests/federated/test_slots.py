"""Participants keep their share wherever they lie on the client axis, which may have gaps."""

from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.mix import alone
from feddpa_jax.devices.mesh import single_mesh
from feddpa_jax.federated.clients import ClientParts, MemoryStore
from feddpa_jax.federated.method import FedState, Method, Part, Phase
from feddpa_jax.federated.play import Federation, merge_metrics, play_phases
from feddpa_jax.training.engine import PhaseMetrics
from tests.federated.three_clients import experiment


def train(objective: Any, trained_C: Any, frozen: Any, chunk: Any, **settings: Any) -> Any:
    """What each place is trained to: 10 for client 4, 20 for client 7."""
    trained_C = jax.tree.map(
        lambda leaf: jnp.zeros_like(leaf) + jnp.array([10.0, 1000.0, 20.0])[:, None], trained_C
    )
    return trained_C, PhaseMetrics({}, 0, 0)


@pytest.mark.parametrize(
    ("kind", "aggregation", "expected"),
    [
        ("mean", "uniform", 15.0),
        ("mean", "examples", 17.5),
        ("sum", "uniform", 30.0),
        ("stack", "examples", [10.0, 20.0, 0.25, 0.75]),
    ],
)
def test_what_reaches_the_server_is_of_the_participants_alone(kind, aggregation, expected):
    """Clients 4 and 7 have 1 and 3 examples and lie in places 0 and 2; place 1 is empty."""
    seen = []

    def step(sent: Any, server: Any, moment: Any) -> Any:
        seen.append(sent)
        assert moment.members.tolist() == [4, 7]
        return {}

    phase = Phase("p", train=("global",), mix=alone("global"), reduce=kind, server=step)
    method = Method({"global": Part("server", lambda key: None)}, (phase,))
    chunk = SimpleNamespace(total_C=np.zeros(3), slots=np.array([0, 2]), members=np.array([4, 7]))
    engine = cast(Any, SimpleNamespace(mesh=single_mesh(), train=train))
    names = tuple("abcdefgh")
    federation = Federation(engine, names, np.zeros(8), MemoryStore(), aggregation)
    data = SimpleNamespace(
        number=0,
        participants=np.array([4, 7]),
        examples=np.array([1, 3]),
        chunks=lambda phase: [chunk],
        stopping=None,
    )
    state = FedState({"global": {"q": {"a": jnp.zeros(2)}}}, ClientParts(names, MemoryStore()))
    settings: Any = {"key": jax.random.key(0), "learning_rate": 1.0}
    play_phases(method, federation, state, lambda all_: cast(Any, data), (phase,), **settings)
    (sent,) = seen
    if kind == "stack":
        found = [*sent.parts_K["global"]["q"]["a"][:, 0], *sent.share_K]
    else:
        found = sent["global"]["q"]["a"][0]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("name", ["flexlora", "fedex_lora", "fedlease"])
def test_what_is_made_on_the_host_is_of_the_first_process(monkeypatch, name):
    """Another process takes what the first one has made, and computes nothing of it."""
    made = []

    def note(make: Any) -> Any:
        made.append(make())
        return jax.tree.map(np.zeros_like, made[-1])

    monkeypatch.setattr("feddpa_jax.federated.play.from_first", note)
    run = experiment(name, options={"clusters": 1} if name == "fedlease" else {}, rounds=1)
    server = run.train().server
    part = "expert" if name == "fedlease" else "global"
    assert np.any(jax.tree.leaves(made[0][part])[0])
    assert not any(map(np.any, jax.tree.leaves(server[part])))


def test_chunks_of_a_phase_add_up():
    one, two = PhaseMetrics({"x": [1.0]}, 3, 7), PhaseMetrics({"y": [2.0]}, 5, 11)
    assert merge_metrics([one, two]) == PhaseMetrics({"x": [1.0], "y": [2.0]}, 8, 18)
