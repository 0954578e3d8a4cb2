"""Dropout masks from a counter hash: cheap, and the same for a row wherever it is computed.

A mask depends on the row's key, the site (layer, target, branch) and the position in the row, never
on the batch around the row. The hash is two rounds of MurmurHash3's 32-bit finalizer (Appleby,
public domain), some ten integer operations per element; Threefry takes sixty.
"""

import chex
import jax
import jax.numpy as jnp


def _mix(h: jax.Array) -> jax.Array:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def dropout(
    x_BTD: jax.Array, key_B2: jax.Array, *, site: int | jax.Array, rate: float
) -> jax.Array:
    """Zeroes elements with probability `rate` and scales the rest by 1 / (1 - rate).

    Args:
      x_BTD: values.
      key_B2: two words per row, uint32 (`jax.random.key_data` of the row's key).
      site: a number that no other dropout of the same forward pass uses.
      rate: probability of a zero, in [0, 1); rounded to a multiple of 2**-32.

    Returns:
      The masked values, same shape and dtype; the expectation is `x_BTD`.
    """
    B, T, D = x_BTD.shape
    chex.assert_shape(key_B2, (B, 2))
    chex.assert_type(key_B2, jnp.uint32)
    place = jnp.asarray(site, jnp.uint32) * jnp.uint32(0x9E3779B9)
    first_B11 = _mix(key_B2[:, 0] ^ place)[:, None, None]
    second_B11 = _mix(key_B2[:, 1] + place)[:, None, None]
    counter_1TD = jnp.arange(T * D, dtype=jnp.uint32).reshape(1, T, D)
    bits_BTD = _mix(_mix(counter_1TD + first_B11) ^ second_B11)
    keep_BTD = bits_BTD >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(keep_BTD, x_BTD * (1.0 / (1.0 - rate)), 0.0)
