"""The key/value cache: slot p of a row holds the token at position p of that row.

Prompts are padded on the right. A padding token writes its slot too, but no earlier query sees that
slot, and the row's next real token overwrites it; so rows of different lengths need no shifting.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from feddpa_jax.models.model_config import ModelConfig


class LayerCache(NamedTuple):
    """Keys and values of one layer, [B, K, S, H]."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array


Cache = tuple[LayerCache, ...]


def empty_cache(config: ModelConfig, rows: int, slots: int, dtype: DTypeLike) -> Cache:
    """A cache for `rows` sequences of up to `slots` tokens, prompt and answer together."""
    shape = (rows, config.kv_heads, slots, config.head_dim)
    return tuple(
        LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers)
    )


def cache_mask(position_BT: jax.Array, slots: int) -> jax.Array:
    """Which slots each query sees: all up to its own position. bool [B, T, S]."""
    return jnp.arange(slots)[None, None, :] <= position_BT[:, :, None]


def write(
    cache: LayerCache, k_BTKH: jax.Array, v_BTKH: jax.Array, position_BT: jax.Array
) -> LayerCache:
    """The cache with the tokens at `position_BT` put into their slots; slots past the end drop."""
    B, K, _, H = cache.k_BKSH.shape
    chex.assert_shape([k_BTKH, v_BTKH], (*position_BT.shape, K, H))
    chex.assert_shape(position_BT, (B, None))

    def put(old_BKSH: jax.Array, new_BTKH: jax.Array) -> jax.Array:
        row_B1 = jnp.arange(old_BKSH.shape[0])[:, None]
        return old_BKSH.at[row_B1, :, position_BT].set(
            new_BTKH.astype(old_BKSH.dtype), mode="drop", unique_indices=True
        )

    return LayerCache(put(cache.k_BKSH, k_BTKH), put(cache.v_BKSH, v_BTKH))
