"""Rules that learn: against plain re-computations, alone and beside others, and what they need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.inference.scorer import Scorer
from feddpa_jax.weighting.descent import descend
from feddpa_jax.weighting.evidence import WEIGHTS, Evidence
from feddpa_jax.weighting.gathering import nll_at_weights
from feddpa_jax.weighting.rules.held_out_gate import held_out_gate
from feddpa_jax.weighting.weights import make_weighting
from tests.evaluate.test_evaluation import ADAPTERS, MODEL, TEST, TRAIN, plain, tokenize

DRAW = np.random.default_rng(0)
HELD_HD = DRAW.normal(size=(6, 5)).astype(np.float32) + 3.0
# The first feature tells whether an example is better off with the local adapter.
SLOPE_H = np.array([1, -1, 1, 1, -1, -1], np.float32)
HELD_HD[:, 0] += 2.0 * SLOPE_H
NLL_HW = (1.0 - SLOPE_H[:, None] * np.array(WEIGHTS) + 0.2 * DRAW.random((6, 9))).astype(np.float32)


def adam(gradient, x: np.ndarray, *, rate: float, steps: int) -> np.ndarray:
    """Adam by the paper's algorithm box, in float64."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        g = gradient(x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return x


def test_descent_is_adam():
    target = np.array([3.0, -2.0, 0.0])
    expected = adam(lambda x: 2 * (x - target), np.zeros(3), rate=0.1, steps=7)
    found = descend(
        lambda x: jnp.square(x - jnp.array(target)).sum(), jnp.zeros(3), rate=0.1, steps=7
    )
    np.testing.assert_allclose(found, expected, atol=3e-5)


def plain_gate(query_BD, *, ridge: float, rate: float, steps: int) -> np.ndarray:
    """The gate in numpy, with the slope of a curve's piece in the gradient's place."""
    variance = HELD_HD.var(axis=0)
    spread = np.sqrt((variance + variance.mean()) / 2)

    def z(x):
        return np.c_[(x - HELD_HD.mean(axis=0)) / spread / 5**0.5, np.ones(len(x))]

    def gradient(v):
        w = 1 / (1 + np.exp(-z(HELD_HD) @ v))
        piece = np.minimum((w * 8).astype(int), 7)
        slope = 8 * (NLL_HW[np.arange(6), piece + 1] - NLL_HW[np.arange(6), piece])
        return (slope * w * (1 - w)) @ z(HELD_HD) / 6 + ridge * np.append(v[:-1], 0.0)

    v = adam(gradient, np.zeros(6), rate=rate, steps=steps)
    return 1 / (1 + np.exp(-z(query_BD) @ v))


@pytest.mark.parametrize("ridge", [0.02, 0.5])
def test_the_gate_is_that_of_its_docstring(ridge: float):
    query_BD = DRAW.normal(size=(4, 5)).astype(np.float32) + 3.0
    how = {"ridge": ridge, "rate": 0.03, "steps": 60}
    found = jax.jit(lambda *seen: held_out_gate(*seen, **how))(query_BD, HELD_HD, NLL_HW)
    np.testing.assert_allclose(found, plain_gate(query_BD, **how), atol=2e-4)


def test_the_gate_learns_which_mix_answers_better():
    weight_H = np.asarray(held_out_gate(HELD_HD, HELD_HD, NLL_HW, ridge=0.0))
    assert ((weight_H > 0.5) == (SLOPE_H > 0)).all() and np.ptp(weight_H) > 0.3
    flat = np.full_like(NLL_HW, 2.0)
    np.testing.assert_array_equal(held_out_gate(HELD_HD, HELD_HD, flat), 0.5)


def test_a_gate_weighs_an_instance_alike_wherever_it_stands():
    weigh = jax.jit(make_weighting("held_out_gate", scale=0.3, scales="global"))
    query_BD = DRAW.normal(size=(7, 5)).astype(np.float32)
    seen = Evidence(query_BD=query_BD, held_HD=HELD_HD, held_nll_HW=NLL_HW)
    together = weigh(seen)
    for b in range(7):
        alone = weigh(seen._replace(query_BD=query_BD[b : b + 1]))
        np.testing.assert_allclose(alone.local_weight_B, together.local_weight_B[b], atol=1e-6)
    # It is the weight: neither scale nor side applies.
    np.testing.assert_array_equal(together.local_weight_B, together.similarity_B)
    np.testing.assert_allclose(
        together.local_weight_B, held_out_gate(query_BD, HELD_HD, NLL_HW), atol=1e-6
    )


def test_losses_at_every_weight():
    own = [tokenize(TRAIN[0])[:2], tokenize(TEST)[:1]]
    scorer = Scorer.for_examples(MODEL, ADAPTERS, [*own[0], *own[1]], block_tokens=400)
    found = nll_at_weights(scorer, own)
    assert [nll_HW.shape for nll_HW in found] == [(2, 9), (1, 9)]
    for client, place, w in ((0, 0, 0), (0, 1, 3), (1, 0, 8)):
        l = WEIGHTS[w]
        expected = plain(own[client][place], client, 1 - l, l)[0]
        assert found[client][place, w] == pytest.approx(expected, abs=2e-5)
