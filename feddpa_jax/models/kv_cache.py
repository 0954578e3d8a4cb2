"""The key/value cache: slots that hold the tokens of a row, in any order, with their positions.

Prompts are padded on the right and fill the first slots of a row. All rows of a step write the same
slots, so a step writes one slice in place and copies nothing; which of them a query sees follows
from their positions. Several tokens of a row may have one position: those of its beams.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from feddpa_jax.devices.contraction import contract
from feddpa_jax.models.model_config import ModelConfig

# The position of a slot that holds nothing: later than every query.
NEVER = 2**30


class LayerCache(NamedTuple):
    """Keys and values of one layer.

    Attributes:
      k_BKHS: keys, with slots last: as the products of single queries read them fastest.
      v_BKSH: values.
    """

    k_BKHS: jax.Array
    v_BKSH: jax.Array


class Cache(NamedTuple):
    """The caches of all layers.

    Attributes:
      layers: each layer's.
      position_BS: of the tokens in the slots; `NEVER` of those that are not to be seen.
    """

    layers: tuple[LayerCache, ...]
    position_BS: jax.Array


def empty_cache(config: ModelConfig, rows: int, slots: int, dtype: DTypeLike) -> Cache:
    """A cache for `rows` sequences of up to `slots` tokens, prompt and answer together."""
    k_shape = (rows, config.kv_heads, config.head_dim, slots)
    v_shape = (rows, config.kv_heads, slots, config.head_dim)
    return Cache(
        tuple(
            LayerCache(jnp.zeros(k_shape, dtype), jnp.zeros(v_shape, dtype))
            for _ in range(config.layers)
        ),
        jnp.full((rows, slots), NEVER, jnp.int32),
    )


def extended(cache: Cache, slots: int) -> Cache:
    """The cache with so many more slots, which are empty."""
    none, more = (0, 0), (0, slots)
    return Cache(
        tuple(
            LayerCache(
                jnp.pad(layer.k_BKHS, (none, none, none, more)),
                jnp.pad(layer.v_BKSH, (none, none, more, none)),
            )
            for layer in cache.layers
        ),
        jnp.pad(cache.position_BS, (none, more), constant_values=NEVER),
    )


def with_rows(cache: Cache, row_A: jax.Array, new: Cache) -> Cache:
    """The cache with whole rows anew: those of `new` in the first slots, and nothing after them.

    Args:
      cache: of B rows and S slots.
      row_A: which rows; B for a row of `new` that is to be left out.
      new: of A rows and at most S slots.
    """
    A, P = new.position_BS.shape
    more = cache.position_BS.shape[1] - P
    position_AS = jnp.pad(new.position_BS, ((0, 0), (0, more)), constant_values=NEVER)
    chex.assert_shape(row_A, (A,))
    return Cache(
        tuple(
            LayerCache(
                old.k_BKHS.at[row_A, :, :, :P].set(own.k_BKHS, mode="drop"),
                old.v_BKSH.at[row_A, :, :P].set(own.v_BKSH, mode="drop"),
            )
            for old, own in zip(cache.layers, new.layers, strict=True)
        ),
        cache.position_BS.at[row_A].set(position_AS, mode="drop"),
    )


def placed(cache: Cache, position_BT: jax.Array, slot: jax.Array | int) -> Cache:
    """The cache that knows of tokens at these positions in the slots from `slot` on."""
    position_BS = jax.lax.dynamic_update_slice(cache.position_BS, position_BT, (0, slot))
    return cache._replace(position_BS=position_BS)


def cache_mask(position_BT: jax.Array, cache: Cache) -> jax.Array:
    """Which slots each query sees: all up to its own position. bool [B, T, S]."""
    return cache.position_BS[:, None, :] <= position_BT[:, :, None]


def write(
    cache: LayerCache, k_BKTH: jax.Array, v_BKTH: jax.Array, slot: jax.Array | int
) -> LayerCache:
    """The cache with T tokens in the slots from `slot` on."""
    chex.assert_equal_shape([k_BKTH, v_BKTH])
    slot = jnp.asarray(slot, jnp.int32)
    k_BKHT = k_BKTH.swapaxes(2, 3).astype(cache.k_BKHS.dtype)
    v_BKTH = v_BKTH.astype(cache.v_BKSH.dtype)
    return LayerCache(
        _written(cache.k_BKHS, k_BKHT, slot, axis=3), _written(cache.v_BKSH, v_BKTH, slot, axis=2)
    )


def _written(old: jax.Array, new: jax.Array, slot: jax.Array, axis: int) -> jax.Array:
    """`old` with `new` from `slot` on."""

    def sliced(old: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis)

    def scattered(old: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
        row_B1 = jnp.arange(old.shape[0])[:, None]
        slot_1T = slot + jnp.arange(new.shape[axis])[None]
        at = (row_B1, slice(None), *[slice(None)] * (axis - 2), slot_1T)
        lines_BTKH = jnp.moveaxis(new, axis, 1)
        return old.at[at].set(lines_BTKH, mode="drop", unique_indices=True)

    # CPUs fuse a slice's update into the products that read it, and copy the whole cache for it.
    return jax.lax.platform_dependent(old, new, slot, cpu=scattered, default=sliced)


def attend_cached(
    q_BTNH: jax.Array, cache: LayerCache, mask_BTS: jax.Array, *, scale: float
) -> jax.Array:
    """Attention of a few queries a row over the cache's slots, [B, T, N*H]; see `attend`."""
    B, T, N, H = q_BTNH.shape
    K, S = cache.v_BKSH.shape[1:3]
    chex.assert_shape(mask_BTS, (B, T, S))
    dtype = cache.v_BKSH.dtype
    q_BKTGH = (q_BTNH * scale).reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4)
    score_BKTGS = contract("BKTGH,BKHS->BKTGS", q_BKTGH, cache.k_BKHS, dtype)
    score_BKTGS = jnp.where(mask_BTS[:, None, :, None], score_BKTGS, -1e30)
    weight_BKTGS = jax.nn.softmax(score_BKTGS, axis=-1)
    out_BKTGH = contract("BKTGS,BKSH->BKTGH", weight_BKTGS, cache.v_BKSH, dtype)
    return out_BKTGH.transpose(0, 2, 1, 3, 4).reshape(B, T, N * H)
