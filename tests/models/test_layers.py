"""Attention in one kernel against attention in two products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.models.decoder import causal_mask
from feddpa_jax.models.layers import attend, attend_fused, fuses
from feddpa_jax.models.sizes import known_sizes

B, T, N, K, H = 3, 16, 6, 2, 8


def operands() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Queries, keys, values, and the mask of rows of two examples, of one, and of padding."""
    draw = np.random.default_rng(0)
    q_BTNH, k_BTKH, v_BTKH = (
        jnp.asarray(draw.normal(size=(B, T, heads, H)), jnp.float32) for heads in (N, K, K)
    )
    segment_BT = np.zeros((B, T), np.int32)
    segment_BT[0, :5], segment_BT[0, 5:14], segment_BT[1] = 1, 2, 1
    return q_BTNH, k_BTKH, v_BTKH, jnp.asarray(segment_BT)


@pytest.mark.parametrize("scale", [H**-0.5, 0.7])
def test_one_kernel_gives_what_two_products_give(scale):
    q_BTNH, k_BTKH, v_BTKH, segment_BT = operands()
    mask_BTT = causal_mask(segment_BT)
    real_BT1 = (segment_BT > 0)[:, :, None]

    def plain(q, k, v):
        return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask_BTT, scale=scale)

    # The GPU's library is not at hand everywhere: the same operation in XLA.
    fused = functools.partial(attend_fused, mask_BTT=mask_BTT, scale=scale, implementation="xla")
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, N * H))) * real_BT1

    def total(attention):
        return lambda *parts: jnp.sum(attention(*parts) * weight)

    for one, other in (
        (plain(q_BTNH, k_BTKH, v_BTKH), fused(q_BTNH, k_BTKH, v_BTKH)),
        *zip(
            jax.grad(total(plain), argnums=(0, 1, 2))(q_BTNH, k_BTKH, v_BTKH),
            jax.grad(total(fused), argnums=(0, 1, 2))(q_BTNH, k_BTKH, v_BTKH),
            strict=True,
        ),
    ):
        # Queries of padding see nothing; what they get is no one's.
        keep = real_BT1.reshape(B, T, *[1] * (one.ndim - 2))
        np.testing.assert_allclose(one * keep, other * keep, atol=2e-6)
    assert np.isfinite(fused(q_BTNH, k_BTKH, v_BTKH)).all()


def test_where_one_kernel_is_used():
    config = known_sizes("llama-2-7b")
    assert fuses("gpu", jnp.bfloat16, config)
    assert not fuses("gpu", jnp.float32, config)
    assert not fuses("cpu", jnp.bfloat16, config)
    assert not fuses("tpu", jnp.bfloat16, config)
