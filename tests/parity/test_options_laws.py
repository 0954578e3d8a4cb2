"""Laws and hand numbers of the oracles of FedProx, server optimizers and rates by round."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.parity.reference_aggregation import LoraLlama, Setting, run_shared
from tests.parity.reference_options import ServerOptimizer, cosine
from tests.parity.tiny_federation import (
    ALPHA,
    COUNTS,
    PARTICIPANTS,
    TARGETS,
    gap,
    random_adapter,
    rounds_of,
    tiny_llama,
    work_of,
)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(tiny_llama(), alpha=ALPHA, learning_rate=0.02, examples=COUNTS)


@pytest.fixture(scope="module")
def rounds() -> list:
    return rounds_of(PARTICIPANTS)


def stepped(kind: str, changes: list[float], rate: float = 1.0, **others: float) -> list[float]:
    """Where a number goes that starts at 0, when the mean is so far from it in each round."""
    optimizer, at = ServerOptimizer(kind, rate, **others), np.zeros(1)
    path = []
    for change in changes:
        at = optimizer.step(("q_proj", "a"), at, at + change)
        path.append(at.item())
    return path


def test_momentum_by_hand():
    # m = 1, then 0.9 + 2 = 2.9, then 2.61 - 1 = 1.61; half of each is added.
    assert stepped("momentum", [1, 2, -1], 0.5) == pytest.approx([0.5, 1.95, 2.755])


def test_adam_by_hand():
    # v = 0.99 * 0.25 + 0.01 * 4 = 0.2875, m = 0.1 * 2 = 0.2;
    # v = 0.99 * 0.2875 + 0.01 * 1 = 0.294625, m = 0.9 * 0.2 + 0.1 * 1 = 0.28.
    first = 0.2 / (0.2875**0.5 + 0.5)
    second = 0.28 / (0.294625**0.5 + 0.5)
    assert stepped("adam", [2, 1], tau=0.5) == pytest.approx([first, first + second])


def test_yogi_by_hand():
    # v = 0.25 is below 4 and grows: 0.25 + 0.01 * 4 = 0.29; 0.25 is below it: 0.29 - 0.0025.
    first = 0.2 / (0.29**0.5 + 0.5)
    second = (0.9 * 0.2 + 0.1 * 0.5) / (0.2875**0.5 + 0.5)
    assert stepped("yogi", [2, 0.5], tau=0.5) == pytest.approx([first, first + second])


def test_adagrad_by_hand():
    # v = 0.25 + 4, then + 1; no momentum.
    first = 2 / (4.25**0.5 + 0.5)
    second = 1 / (5.25**0.5 + 0.5)
    assert stepped("adagrad", [2, 1], tau=0.5) == pytest.approx([first, first + second])


def test_momentum_of_nothing_at_rate_one_is_fedavg(setting, rounds):
    start = random_adapter(setting.model, 1)
    plain = run_shared(setting, start, rounds)
    none = ServerOptimizer("momentum", 1.0, beta_1=0.0)
    same = run_shared(setting, start, rounds, server=none)
    assert gap(plain.server[-1], same.server[-1]) < 1e-12
    other = run_shared(setting, start, rounds, server=ServerOptimizer("momentum", 1.0))
    assert gap(plain.server[0], other.server[0]) < 1e-12
    assert gap(plain.server[1], other.server[1]) > 1e-3


def test_a_leaf_and_its_state_rest_in_rounds_that_do_not_send_it():
    def pair(a: float, b: float) -> dict:
        return {"q_proj": {"a": np.array([a]), "b": np.array([b])}}

    optimizer = ServerOptimizer("adam", 0.1)
    first = optimizer(pair(0, 0), pair(2, 2), "b")
    second = optimizer(first, pair(1, 1), "a")
    third = optimizer(second, pair(3, 3), "b")
    alone = ServerOptimizer("adam", 0.1)
    path = np.zeros(1)
    for mean in (2.0, 3.0):
        path = alone.step(("q_proj", "b"), path, np.array([mean]))
    assert first["q_proj"]["a"] == 0
    assert second["q_proj"]["b"] == first["q_proj"]["b"]
    assert third["q_proj"]["b"] == path


def test_proximal_of_nothing_is_fedavg(setting, rounds):
    start = random_adapter(setting.model, 1)
    none = run_shared(dataclasses.replace(setting, proximal=0.0), start, rounds)
    plain = run_shared(setting, start, rounds)
    assert none.losses == plain.losses
    assert gap(none.server[-1], plain.server[-1]) == 0


def test_proximal_pulls_towards_what_was_received(setting, rounds):
    start = random_adapter(setting.model, 1)
    loose, tight = (
        run_shared(dataclasses.replace(setting, proximal=mu), start, rounds[:1])
        for mu in (0.0, 100.0)
    )
    for client in range(3):
        # Nothing pulls before the first update, and little is left of what it did.
        assert loose.losses[0][client][:2] == pytest.approx(tight.losses[0][client][:2], abs=1e-12)
        assert loose.losses[0][client][2] != pytest.approx(tight.losses[0][client][2], abs=1e-6)
        free = gap(loose.uploads[0][client], start)
        assert gap(tight.uploads[0][client], start) < 0.9 * free


@pytest.mark.parametrize("leaves", ["b", "ab"])
def test_proximal_gradient_is_mu_times_the_distance(setting, leaves):
    """Once an update, however many micro-batches it has, and of the trained leaves alone."""
    start = random_adapter(setting.model, 1)
    update = work_of(4, 0)[0]
    gradients = []
    for mu in (0.0, 0.7):
        llama = LoraLlama(setting.model, start, ALPHA)
        llama.proximal = mu
        llama.receive(start, leaves)
        with torch.no_grad():
            for factor in llama.trained:
                factor += 0.5
        for micro_batch in update:
            (llama.loss(micro_batch) / len(update)).backward()
        gradients.append([factor.grad.clone() for factor in llama.trained])
    assert len(gradients[0]) == len(leaves) * len(TARGETS) * 2
    for plain, pulled in zip(*gradients, strict=True):
        torch.testing.assert_close(pulled - plain, torch.full_like(plain, 0.7 * 0.5))


def test_cosine_over_rounds_by_hand(setting, rounds):
    rate = cosine(4)
    # cos of 0, 45, 90 and 135 degrees.
    assert [rate(r) for r in range(4)] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    start = random_adapter(setting.model, 1)
    falling = run_shared(dataclasses.replace(setting, rate=cosine(2)), start, rounds[:2])
    half = dataclasses.replace(setting, learning_rate=0.01)
    again = run_shared(half, falling.server[0], rounds[1:2])
    assert gap(falling.server[0], run_shared(setting, start, rounds[:1]).server[0]) == 0
    assert falling.losses[1] == again.losses[0]
    assert gap(falling.server[1], again.server[0]) == 0
