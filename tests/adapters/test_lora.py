"""The algebra of adapters: what a bank adds, and when it adds nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dropout import dropout
from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.adapters.lora import TARGETS, bank_delta, init_adapter
from feddpa_jax.models.config import ModelConfig
from feddpa_jax.models.decoder import causal_mask, random_model

CONFIG = ModelConfig(29, 12, 2, 4, 2, 4, 20)


def adapter(seed: int, *, targets=TARGETS, zero_b=False) -> dict:
    sizes = {target: CONFIG.target_sizes()[target] for target in targets}
    fresh = init_adapter(jax.random.key(seed), sizes, layers=2, rank=3)
    if zero_b:
        return fresh
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(seed + 50), leaf.shape), fresh
    )


def bank(*seeds: int) -> dict:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(adapter, seeds))


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, jax.random.key(0))


def logits(model, branches):
    tokens_BT = jax.random.randint(jax.random.key(4), (3, 7), 0, 29)
    position_BT = jnp.broadcast_to(jnp.arange(7), (3, 7))
    mask = causal_mask(jnp.ones((3, 7), jnp.int32))
    return model.logits(model.hidden(tokens_BT, position_BT, mask, branches)[0])


CLIENT_B = jnp.array([1, 0, 1])


def mixed(global_, local_C, weight_B, **extra):
    return dual_branches(global_, local_C, CLIENT_B, jnp.asarray(weight_B), scale=2.0, **extra)


def test_bank_delta_by_hand():
    # Row 0 uses client 1: x = [1, 2], A = [[3], [4]] -> 11; B = [[5, 6]] -> [55, 66]; times 0.5.
    a_CDR = jnp.array([[[0.0], [0.0]], [[3.0], [4.0]]])
    b_CRE = jnp.array([[[1.0, 1.0]], [[5.0, 6.0]]])
    x_BTD = jnp.array([[[1.0, 2.0]], [[1.0, 2.0]]])
    y = bank_delta(x_BTD, a_CDR, b_CRE, jnp.array([1, 0]), jnp.array([0.5, 1.0]))
    np.testing.assert_array_equal(y, [[[27.5, 33.0]], [[0.0, 0.0]]])


def test_token_weights_equal_row_weights():
    own = bank(1, 2)["q_proj"]
    x_BTD = jax.random.normal(jax.random.key(0), (3, 5, 12))
    weight_B = jnp.array([0.1, 0.7, 0.4])
    args = (x_BTD, own["a"][:, 0], own["b"][:, 0], CLIENT_B)
    by_token = bank_delta(*args, jnp.broadcast_to(weight_B[:, None], (3, 5)))
    np.testing.assert_array_equal(bank_delta(*args, weight_B), by_token)


def test_weight_0_and_1_are_exactly_global_and_local(model):
    global_, local_C = adapter(1), bank(2, 3)
    both_0 = logits(model, mixed(global_, local_C, [0.0, 0.0, 0.0]))
    both_1 = logits(model, mixed(global_, local_C, [1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(both_0, logits(model, mixed(global_, None, [0.0, 0.0, 0.0])))
    np.testing.assert_array_equal(both_1, logits(model, mixed(None, local_C, [1.0, 1.0, 1.0])))
    assert not np.allclose(both_0, both_1)


def test_zero_b_changes_nothing(model):
    fresh = adapter(1, zero_b=True)
    np.testing.assert_array_equal(
        logits(model, mixed(fresh, None, [0.0, 0.0, 0.0])), logits(model, ())
    )


def test_rows_of_different_clients_equal_each_alone(model):
    global_, local_C = adapter(1), bank(2, 3)
    together = logits(model, mixed(global_, local_C, [0.2, 0.5, 0.9]))
    for row, weight in enumerate([0.2, 0.5, 0.9]):
        own = jax.tree.map(lambda leaf, row=row: leaf[int(CLIENT_B[row])][None], local_C)
        alone = dual_branches(global_, own, jnp.zeros(3, jnp.int32), jnp.full(3, weight), scale=2.0)
        np.testing.assert_allclose(together[row], logits(model, alone)[row], atol=2e-6)


def test_same_adapter_on_both_sides_needs_no_weight(model):
    """(1 - w) d + w d = d."""
    one = adapter(4)
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), one)
    np.testing.assert_allclose(
        logits(model, mixed(one, twice, [0.3, 0.6, 0.8])),
        logits(model, mixed(one, None, [0.0, 0.0, 0.0])),
        atol=1e-5,
    )


def test_fresh_adapter_is_uniform_within_its_bound():
    a_LDR = adapter(0, zero_b=True)["down_proj"]["a"]
    bound = CONFIG.ffn**-0.5
    assert np.abs(a_LDR).max() <= bound
    assert np.abs(a_LDR).max() > 0.95 * bound
    # A uniform variable on +-b has deviation b / sqrt(3).
    np.testing.assert_allclose(np.std(a_LDR), bound / np.sqrt(3), rtol=0.15)


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


def test_dropout_of_a_row_does_not_depend_on_its_batch():
    x_BTD = jnp.ones((4, 6, 8))
    key_B2 = jnp.arange(8, dtype=jnp.uint32).reshape(4, 2)
    whole = dropout(x_BTD, key_B2, site=1, rate=0.5)
    np.testing.assert_array_equal(whole[2:3], dropout(x_BTD[2:3], key_B2[2:3], site=1, rate=0.5))
