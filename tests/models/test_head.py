"""The head's loss in chunks of positions against the whole: values, gradients, and memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.models.decoder import Model, random_model
from feddpa_jax.models.head import by_positions, weighted_nll
from feddpa_jax.models.model_config import ModelConfig

P, D, V = 23, 16, 37
TIED = ModelConfig(V, D, 1, 2, 1, 8, 16, tied=True)
UNTIED = dataclasses.replace(TIED, tied=False)
KEYS = jax.random.split(jax.random.key(0), 3)
HIDDEN_PD = jax.random.normal(KEYS[0], (P, D))
TARGET_P = jax.random.randint(KEYS[1], (P,), 0, V)
# The last positions are padding.
WEIGHT_P = jax.random.uniform(KEYS[2], (P,)).at[-4:].set(0.0)


def base(kind: str, dtype: str = "float32") -> Model:
    """A model with a tied or an untied head."""
    return random_model(TIED if kind == "tied" else UNTIED, KEYS[0], dtype)


def whole(model: Model, hidden_PD: jax.Array, weight_P: jax.Array) -> jax.Array:
    """By definition, of all logits at once."""
    log_p_PV = jax.nn.log_softmax(model.logits(hidden_PD))
    return -log_p_PV[jnp.arange(P), TARGET_P] * weight_P


@pytest.mark.parametrize("at_once", [1, 6, 23, 100, None])
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_chunks_equal_the_whole(kind: str, at_once: int | None):
    """Also towards the weights, and with a gradient of the losses that differs by position."""
    model, g_P = base(kind), jnp.linspace(-1.0, 2.0, P)

    def chunked(hidden_PD: jax.Array, weight_P: jax.Array) -> jax.Array:
        return weighted_nll(model, hidden_PD, TARGET_P, weight_P, at_once)

    expected_P, expected = jax.vjp(lambda *given: whole(model, *given), HIDDEN_PD, WEIGHT_P)
    found_P, found = jax.vjp(chunked, HIDDEN_PD, WEIGHT_P)
    np.testing.assert_allclose(found_P, expected_P, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(chunked(HIDDEN_PD, WEIGHT_P), expected_P, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(expected_P).max()) > 0.1 and not found_P[-4:].any()
    for one, other in zip(found(g_P), expected(g_P), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert float(jnp.abs(other).max()) > 0.1


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_chunks_equal_the_whole_in_16_bits(kind: str):
    model = base(kind, "bfloat16")
    found, expected = (
        jax.value_and_grad(function)(HIDDEN_PD)
        for function in (
            lambda hidden_PD: weighted_nll(model, hidden_PD, TARGET_P, WEIGHT_P, 6).sum(),
            lambda hidden_PD: whole(model, hidden_PD, WEIGHT_P).sum(),
        )
    )
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-3)


def test_one_chunk_has_the_bits_of_all_at_once():
    model = base("tied")

    def loss(hidden_PD: jax.Array) -> jax.Array:
        logits_PV = model.logits(hidden_PD)
        at_target_P = jnp.take_along_axis(logits_PV, TARGET_P[:, None], axis=1)[:, 0]
        return ((jax.nn.logsumexp(logits_PV, axis=1) - at_target_P) * WEIGHT_P).sum()

    def own(hidden_PD: jax.Array) -> jax.Array:
        return weighted_nll(model, hidden_PD, TARGET_P, WEIGHT_P).sum()

    for one, other in zip(
        *(jax.jit(jax.value_and_grad(function))(HIDDEN_PD) for function in (own, loss)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_all_logits_never_exist():
    """No array of a differentiated program has as many numbers as the positions' logits."""
    model = base("untied")

    def loss(hidden_PD: jax.Array) -> jax.Array:
        return weighted_nll(model, hidden_PD, TARGET_P, WEIGHT_P, at_once=6).sum()

    text = jax.jit(jax.value_and_grad(loss)).lower(HIDDEN_PD).as_text()
    assert f"tensor<6x{V}xf32>" in text
    assert all(f"tensor<{size}xf32>" not in text for size in (f"{P}x{V}", f"4x6x{V}", f"24x{V}"))


def test_positions_are_given_in_chunks_and_put_back():
    """23 by at most 6 are four chunks of 6, each of every fourth position."""
    sizes = []

    def function(x_P: jax.Array, y_PE: jax.Array) -> dict[str, jax.Array]:
        sizes.append(x_P.shape[0])
        return {"sum": x_P + y_PE[:, 0], "pair": y_PE}

    x_P = jnp.arange(P)
    y_PE = jnp.stack([x_P * 10, x_P * 100], axis=1)
    found = by_positions(function, 6, x_P, y_PE)
    assert set(sizes) == {6}
    np.testing.assert_array_equal(found["sum"], 11 * np.arange(P))
    np.testing.assert_array_equal(found["pair"], y_PE)
