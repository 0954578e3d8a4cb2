"""Prefill and decoding, batched over rows of different clients, mixes and prompt lengths."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from feddpa_jax.adapters.lora import Branch
from feddpa_jax.models.decoder import Model
from feddpa_jax.models.kv_cache import Cache, cache_mask, empty_cache


class Prefilled(NamedTuple):
    """The state after a prompt.

    Attributes:
      cache: keys and values, with room for the answer.
      last_hidden_BD: final hidden state at each row's last prompt token.
    """

    cache: Cache
    last_hidden_BD: jax.Array


class Decoded(NamedTuple):
    """Answers: int32 tokens, `pad_id` after each row's answer, and its length without end token."""

    tokens_BT: jax.Array
    length_B: jax.Array


def prefill(
    model: Model,
    branches: Sequence[Branch],
    tokens_BT: Int[Array, "B T"],
    length_B: Int[Array, "B"],
    slots: int,
) -> Prefilled:
    """Runs prompts that are padded on the right.

    Args:
      model: the frozen base.
      branches: adapters of the rows.
      tokens_BT: prompts.
      length_B: their lengths, at least 1.
      slots: cache slots per row, for prompt and answer together.
    """
    B, T = tokens_BT.shape
    chex.assert_shape(length_B, (B,))
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    cache = empty_cache(model.config, B, slots, model.dtype)
    hidden_BTD, cache = model.hidden(
        tokens_BT, position_BT, cache_mask(position_BT, slots), branches, cache
    )
    assert cache is not None
    return Prefilled(cache, hidden_BTD[jnp.arange(B), length_B - 1])


def step(
    model: Model,
    branches: Sequence[Branch],
    cache: Cache,
    token_B: Int[Array, "B"],
    position_B: Int[Array, "B"],
) -> tuple[Float[Array, "B D"], Cache]:
    """One token of every row through the model: its hidden state, and the cache with it."""
    slots = cache[0].k_BKSH.shape[2]
    position_B1 = position_B[:, None]
    hidden_B1D, new_cache = model.hidden(
        token_B[:, None], position_B1, cache_mask(position_B1, slots), branches, cache
    )
    assert new_cache is not None
    return hidden_B1D[:, 0], new_cache


def is_stop(token_X: Int[Array, "*X"], stop_ids: tuple[int, ...]) -> Bool[Array, "*X"]:
    """Which tokens end an answer."""
    return jnp.isin(token_X, jnp.array(stop_ids, jnp.int32))


def decode(
    model: Model,
    branches: Sequence[Branch],
    prompt_hidden_BD: Float[Array, "B D"],
    cache: Cache,
    length_B: Int[Array, "B"],
    *,
    stop_ids: tuple[int, ...],
    pad_id: int,
    max_new_tokens: int,
    key: Key[Array, ""] | None = None,
) -> Decoded:
    """The likeliest token at every step, or one drawn, until an end token or `max_new_tokens`.

    Stops as soon as all rows have ended.

    Args:
      model: the frozen base.
      branches: adapters of the rows.
      prompt_hidden_BD: final hidden state at each row's last prompt token.
      cache: the prefilled cache, with `max_new_tokens` free slots after each prompt.
      length_B: prompt lengths.
      stop_ids: the tokens of which any ends an answer; at least one.
      pad_id: what follows it.
      max_new_tokens: most tokens of an answer.
      key: draws tokens from the model's distribution; None for the likeliest.
    """
    B = length_B.shape[0]
    chex.assert_shape(prompt_hidden_BD, (B, model.config.width))
    chex.assert_tree_shape_prefix(cache, (B,))

    def choose(logits_BV: jax.Array, index: jax.Array) -> jax.Array:
        if key is None:
            return jnp.argmax(logits_BV, axis=-1)
        return jax.random.categorical(jax.random.fold_in(key, index), logits_BV)

    def unfinished(carry):
        index, _, ended_B, _, _, _ = carry
        return (index < max_new_tokens) & ~ended_B.all()

    def advance(carry):
        index, tokens_BT, ended_B, count_B, hidden_BD, cache = carry
        token_B = choose(model.logits(hidden_BD), index).astype(jnp.int32)
        ended_B = ended_B | (is_stop(token_B, stop_ids))
        tokens_BT = tokens_BT.at[:, index].set(jnp.where(ended_B, pad_id, token_B))
        count_B = count_B + jnp.where(ended_B, 0, 1)
        hidden_BD, cache = step(model, branches, cache, token_B, length_B + index)
        return index + 1, tokens_BT, ended_B, count_B, hidden_BD, cache

    start = (
        jnp.int32(0),
        jnp.full((B, max_new_tokens), pad_id, jnp.int32),
        jnp.zeros(B, bool),
        jnp.zeros(B, jnp.int32),
        prompt_hidden_BD,
        cache,
    )
    _, tokens_BT, _, count_B, _, _ = jax.lax.while_loop(unfinished, advance, start)
    return Decoded(tokens_BT, count_B)
