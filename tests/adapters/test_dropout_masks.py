"""Dropout of adapters: its rate, and a mask of its own for every row, map, layer and branch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.dropout import dropout
from feddpa_jax.adapters.lora import (
    TARGETS,
    Branch,
    delta,
    dropout_site,
)


def test_every_layer_target_and_branch_has_its_own_dropout():
    """A and B are such that the output is the sum of what dropout leaves of the input."""
    pair = {"a": jnp.ones((1, 64, 1)), "b": jnp.ones((1, 1, 1))}
    x_BTD = jnp.arange(1.0, 65.0).reshape(1, 1, 64)
    key_B2 = jnp.array([[1, 2]], jnp.uint32)

    def value(target: str, layer: int, index: int, rate: float = 0.5, key: Any = key_B2) -> float:
        branch = Branch(
            {target: pair}, jnp.zeros(1, int), jnp.ones(1), key, 1.0, rate, False, index
        )
        found = delta([branch], target, x_BTD, layer=layer, dtype=jnp.float32)
        return float(jnp.asarray(found)[0, 0, 0])

    seen = [value(t, l, i) for t in TARGETS for l in range(3) for i in range(2)]
    assert len(set(seen)) > 0.9 * len(seen)
    assert value("q_proj", 0, 0) == value("q_proj", 0, 0) != value("q_proj", 0, 0, rate=0.25)
    # 1 + ... + 64 = 2080 where nothing is dropped.
    assert value("q_proj", 0, 0, rate=0.0) == value("q_proj", 0, 0, key=None) == 2080.0
    for words in ([[1, 3]], [[2, 2]], [[2, 1]]):
        assert value("q_proj", 0, 0, key=jnp.array(words, jnp.uint32)) != value("q_proj", 0, 0)


def test_dropout_rate_mean_and_independence():
    x_BTD = jnp.ones((64, 32, 48))
    key_B2 = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(jax.random.key(0), i)))(
        jnp.arange(64)
    )
    y = np.asarray(dropout(x_BTD, key_B2, site=3, rate=0.25))
    kept = y > 0
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
    # 98304 draws: deviation sqrt(.25 * .75 / 98304) = 0.0014.
    np.testing.assert_allclose(kept.mean(), 0.75, atol=0.006)
    np.testing.assert_allclose(kept.mean(axis=(1, 2)), 0.75, atol=0.06)
    np.testing.assert_allclose(kept.mean(axis=(0, 1)), 0.75, atol=0.05)
    for other in (
        np.asarray(dropout(x_BTD, key_B2, site=4, rate=0.25)) > 0,
        np.asarray(dropout(x_BTD, key_B2[::-1], site=3, rate=0.25)) > 0,
        np.roll(kept, 1, axis=1),
        np.roll(kept, 1, axis=2),
    ):
        # Independent masks agree where both keep or both drop: .75^2 + .25^2 = 0.625.
        np.testing.assert_allclose((kept == other).mean(), 0.625, atol=0.008)


def test_each_branch_of_a_map_has_its_own_mask():
    """However many branches and layers there are."""
    sites = [
        dropout_site(layer, target, index)
        for layer in range(130)
        for target in TARGETS
        for index in range(40)
    ]
    assert len(set(sites)) == len(sites)
    assert max(sites) < 2**32


def test_dropout_of_a_row_does_not_depend_on_its_batch():
    x_BTD = jnp.ones((4, 6, 8))
    key_B2 = jnp.arange(8, dtype=jnp.uint32).reshape(4, 2)
    whole = dropout(x_BTD, key_B2, site=1, rate=0.5)
    np.testing.assert_array_equal(whole[2:3], dropout(x_BTD[2:3], key_B2[2:3], site=1, rate=0.5))
