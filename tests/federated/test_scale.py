"""A thousand clients on one machine: flat memory, and a cost that follows participants."""

import gc
import re
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from feddpa_jax.federated.play import play_phases
from feddpa_jax.models.decoder import random_model
from feddpa_jax.training.engine import make_engine
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.types import TokenizedExample
from tests.federated.player import Player, player_for
from tests.training.test_engine import CONFIG, new_adapter


def many(clients: int, participation: float) -> TrainingData:
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, 61, (clients, 4, 12)).astype(np.int32)
    return TrainingData(
        names=tuple(f"client_{c}" for c in range(clients)),
        examples=tuple(tuple(TokenizedExample(t, 7) for t in own) for own in tokens),
        seed=0,
        epochs=1,
        batch_size=2,
        micro_batch_size=2,
        participation=participation,
        clients_per_step=8,
        block_tokens=256,
    )


@pytest.fixture(scope="module")
def engine():
    base = random_model(CONFIG, jax.random.key(3))
    return make_engine(base, scale=2.0, dropout=0.05, learning_rate=1e-2)


def player(engine, data: TrainingData, folder: Path) -> Player:
    return player_for("feddpa_t", engine, new_adapter, data, folder, rounds=50)


def resident() -> int:
    """Bytes of this process in memory."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def device_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


def test_memory_is_flat_over_fifty_rounds(engine, tmp_path: Path):
    data = many(1024, 0.05)
    method = player(engine, data, tmp_path)
    state = method.start()
    assert len(data.participants(0)) == 51
    host, device = [], []
    for number in range(50):
        state, _ = method.round(state, number)
        if number in (5, 49):
            gc.collect()  # What earlier tests left in cycles is not this round's.
        host.append(resident())
        device.append(device_bytes())
    saved = state.clients.saved
    assert len(saved) > 800  # nearly everybody was there once
    # All private adapters together would be more than is ever added.
    own = sum(saved_.size for saved_ in saved.values())
    assert device[5] < device[0] + own / 4
    # Not even a scalar a round is left behind.
    assert device[49] - device[5] < 4 * (49 - 5)
    assert host[-1] - host[10] < 12e6


def test_device_memory_follows_clients_per_step(engine, tmp_path: Path):
    """Not the number of clients, nor that of participants."""
    most = []
    for clients, participation in ((8, 1.0), (256, 0.25)):
        data = many(clients, participation)
        method = player(engine, data, tmp_path / str(clients))
        state = method.start()
        peak = 0

        def watch(chunks):
            nonlocal peak
            for chunk in chunks:
                yield chunk
                peak = max(peak, device_bytes())

        data_round = data.round(1, data.shapes(2))
        watched = data_round._replace(chunks=lambda phase, of=data_round: watch(of.chunks(phase)))
        play_phases(
            method.method,
            method.federation,
            state,
            lambda everybody, of=watched: of,
            method.method.phases_of(1, 50),
            key=jax.random.key(0),
            learning_rate=1e-2,
        )
        most.append(peak)
    assert most[1] < 1.1 * most[0]


def test_cost_follows_participants(engine, tmp_path: Path):
    """A participant costs the same among 1,024 clients as among 8.

    Measured in processor time, which other work disturbs less, of the quickest round, loosely.
    """
    few, crowd = many(8, 1.0), many(1024, 0.05)
    states = {}
    for name, data in (("few", few), ("crowd", crowd)):
        method = player(engine, data, tmp_path / name)
        states[name] = method, method.start()
    seconds: dict[str, list[float]] = {"few": [], "crowd": []}
    for number in range(1, 7):
        for name, (method, state) in states.items():
            began = time.process_time()
            method.round(state, number)
            spent = time.process_time() - began
            seconds[name].append(spent / len(method.data.participants(number)))
    assert min(seconds["crowd"]) < 1.6 * min(seconds["few"]), seconds
