"""Prefill and decoding, batched over rows of different clients, mixes and prompt lengths.

A row is one prompt with W candidates of its answer: one, or the beams of a search. The candidates
are W queries of one row, so what they have in common, the prompt above all, is cached and read
once: token t of candidate w lies in slot P + t * W + w behind a prompt of P slots. A candidate that
goes on from another one inherits a line of numbers (which candidate said each of its tokens), and
nothing in the cache moves.

Rows need not begin together: all rows write the same slots, T times W of them in a circle, and a
row sees those that were written since it began.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from feddpa_jax.adapters.lora import Branch
from feddpa_jax.models.decoder import Model, causal_mask
from feddpa_jax.models.kv_cache import Cache, cache_mask, empty_cache, extended, placed


class Prefilled(NamedTuple):
    """The state after a prompt.

    Attributes:
      cache: keys and values, without room for the answer.
      last_hidden_BD: final hidden state at each row's last prompt token.
    """

    cache: Cache
    last_hidden_BD: jax.Array


class Decoded(NamedTuple):
    """Answers: int32 tokens, `pad_id` after each row's answer, and its length without end token."""

    tokens_BT: jax.Array
    length_B: jax.Array


class Followed(NamedTuple):
    """A search after the next tokens' logits.

    Attributes:
      search: what it carries, of which `index_B` and `open_B` are read here: tokens so far, and
        whether the row goes on.
      from_BW: the candidate that each of the next ones continues.
      token_BW: the token that it continues it with.
    """

    search: Any
    from_BW: jax.Array
    token_BW: jax.Array


# From what a search carries and the logits [B, W, V] of its candidates' next tokens.
Follow = Callable[[Any, jax.Array], Followed]


class Greedy(NamedTuple):
    """What greedy decoding carries: the answers so far, their lengths, and which go on."""

    tokens_BT: jax.Array
    index_B: jax.Array
    open_B: jax.Array


class Answering(NamedTuple):
    """Rows whose answers are under way.

    Attributes:
      search: `Greedy`, or what another search carries.
      token_BW: each candidate's last token, which is not in the cache yet.
      length_B: prompt lengths.
      cache: prompts and the tokens before.
      said_BWT: the candidate that said what each one has at each place of the circle.
      clock_1: steps so far.
    """

    search: Any
    token_BW: jax.Array
    length_B: jax.Array
    cache: Cache
    said_BWT: jax.Array
    clock_1: jax.Array


def prefill(
    model: Model,
    branches: Sequence[Branch],
    tokens_BT: Int[Array, "B T"],
    length_B: Int[Array, "B"],
) -> Prefilled:
    """Runs prompts that are padded on the right.

    Args:
      model: the frozen base.
      branches: adapters of the rows.
      tokens_BT: prompts.
      length_B: their lengths, at least 1.
    """
    B, T = tokens_BT.shape
    chex.assert_shape(length_B, (B,))
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    inside_BT = position_BT < length_B[:, None]
    segment_BT = inside_BT.astype(jnp.int32)
    hidden_BTD, cache = model.hidden(
        *(tokens_BT, position_BT, causal_mask(segment_BT), branches),
        empty_cache(model.config, B, T, model.dtype),
        segment_BT=segment_BT,
    )
    assert cache is not None
    never_BT = empty_cache(model.config, B, T, model.dtype).position_BS
    cache = cache._replace(position_BS=jnp.where(inside_BT, position_BT, never_BT))
    return Prefilled(cache, hidden_BTD[jnp.arange(B), length_B - 1])


def step(
    model: Model,
    branches: Sequence[Branch],
    cache: Cache,
    token_BW: Int[Array, "B W"],
    position_B: Int[Array, "B"],
    slot: jax.Array | int,
    own_BWX: Bool[Array, "B W X"] | None = None,
) -> tuple[Float[Array, "B W D"], Cache]:
    """One token of every candidate through the model: its hidden state, and the cache with it.

    Args:
      model: the frozen base.
      branches: adapters of the rows.
      cache: what was before.
      token_BW: the tokens.
      position_B: their position in the row.
      slot: the first of W slots that they take.
      own_BWX: which of the last X slots hold a candidate's own past; None: all.
    """
    position_BW = jnp.broadcast_to(position_B[:, None], token_BW.shape)
    mask_BWS = cache_mask(position_BW, placed(cache, position_BW, slot))
    if own_BWX is not None:
        shared = mask_BWS.shape[-1] - own_BWX.shape[-1]
        own_BWS = jnp.pad(own_BWX, ((0, 0), (0, 0), (shared, 0)), constant_values=True)
        mask_BWS = mask_BWS & own_BWS
    hidden_BWD, new = model.hidden(token_BW, position_BW, mask_BWS, branches, cache, slot=slot)
    assert new is not None
    return hidden_BWD, new


def is_stop(token_X: Int[Array, "*X"], stop_ids: tuple[int, ...]) -> Bool[Array, "*X"]:
    """Which tokens end an answer."""
    return jnp.isin(token_X, jnp.array(stop_ids, jnp.int32))


def pick(values: jax.Array, chosen_BX: jax.Array) -> jax.Array:
    """values[b, chosen[b, x]] for any trailing axes."""
    return jax.vmap(lambda row, chosen: row[chosen])(values, chosen_BX)


def begin(rows: int, *, pad_id: int, max_new_tokens: int) -> Greedy:
    """Greedy decoding before its first token."""
    return Greedy(
        tokens_BT=jnp.full((rows, max_new_tokens), pad_id, jnp.int32),
        index_B=jnp.zeros(rows, jnp.int32),
        open_B=jnp.ones(rows, bool),
    )


def follow(
    now: Greedy,
    logits_B1V: Float[Array, "B 1 V"],
    *,
    stop_ids: tuple[int, ...],
    key: Key[Array, ""] | None = None,
) -> Followed:
    """A step: the likeliest tokens, or with a key drawn ones, of rows that began together."""
    logits_BV = logits_B1V[:, 0]
    if key is None:
        token_B = jnp.argmax(logits_BV, axis=-1)
    else:
        token_B = jax.random.categorical(jax.random.fold_in(key, now.index_B.max()), logits_BV)
    token_B = token_B.astype(jnp.int32)
    B, T = now.tokens_BT.shape
    goes_B = now.open_B & ~is_stop(token_B, stop_ids)
    place_B = jnp.where(goes_B, now.index_B, T)
    tokens_BT = now.tokens_BT.at[jnp.arange(B), place_B].set(token_B, mode="drop")
    index_B = now.index_B + goes_B
    search = Greedy(tokens_BT, index_B, goes_B & (index_B < T))
    return Followed(search, jnp.zeros((B, 1), jnp.int32), token_B[:, None])


def first_tokens(
    model: Model, prompt: Prefilled, search: Any, follow: Follow, candidates: int
) -> Followed:
    """A search after the prompts' logits, which are those of all candidates."""
    logits_BV = model.logits(prompt.last_hidden_BD)
    shape = (len(logits_BV), candidates, logits_BV.shape[1])
    return follow(search, jnp.broadcast_to(logits_BV[:, None], shape))


def started(
    prompt: Prefilled, length_B: jax.Array, followed: Followed, max_new_tokens: int
) -> Answering:
    """Rows that begin together, with room for their answers."""
    B, W = followed.token_BW.shape
    return Answering(
        followed.search,
        followed.token_BW,
        length_B,
        extended(prompt.cache, W * max_new_tokens),
        jnp.zeros((B, W, max_new_tokens), jnp.int32),
        jnp.zeros(1, jnp.int32),
    )


def advance(
    model: Model,
    branches: Sequence[Branch],
    rows: Answering,
    follow: Follow,
    enough: jax.Array | int,
) -> Answering:
    """Goes on with all rows until `enough` of them have ended.

    Args:
      model: the frozen base.
      branches: adapters of the rows.
      rows: the answers so far.
      follow: a step of their search.
      enough: how many ended rows, those among them that had ended before.
    """
    B, W, T = rows.said_BWT.shape
    first = rows.cache.position_BS.shape[1] - W * T

    def unfinished(rows: Answering) -> jax.Array:
        return (~rows.search.open_B).sum() < enough

    def go_on(rows: Answering) -> Answering:
        place = rows.clock_1[0] % T
        said_BWT, own_BWX = rows.said_BWT, None
        if W > 1:
            own_BW1 = jnp.broadcast_to(jnp.arange(W)[None, :, None], (B, W, 1))
            said_BWT = jax.lax.dynamic_update_slice(said_BWT, own_BW1, (0, 0, place))
            own_BWX = said_BWT[..., None] == jnp.arange(W)[None, None, None, :]
            own_BWX = own_BWX.reshape(B, W, T * W)
        hidden_BWD, cache = step(
            *(model, branches, rows.cache, rows.token_BW),
            *(rows.length_B + rows.search.index_B - 1, first + place * W, own_BWX),
        )
        followed = follow(rows.search, model.logits(hidden_BWD))
        if W > 1:
            said_BWT = pick(said_BWT, followed.from_BW)
        return Answering(
            *(followed.search, followed.token_BW, rows.length_B, cache, said_BWT),
            rows.clock_1 + 1,
        )

    return jax.lax.while_loop(unfinished, go_on, rows)


def decode(
    model: Model,
    branches: Sequence[Branch],
    prompt: Prefilled,
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
      prompt: the prompts, prefilled.
      length_B: prompt lengths.
      stop_ids: the tokens of which any ends an answer; at least one.
      pad_id: what follows it.
      max_new_tokens: most tokens of an answer.
      key: draws tokens from the model's distribution; None for the likeliest.
    """
    B = length_B.shape[0]
    chex.assert_shape(prompt.last_hidden_BD, (B, model.config.width))
    chex.assert_tree_shape_prefix(prompt.cache, (B,))
    choose = functools.partial(follow, stop_ids=stop_ids, key=key)
    search = begin(B, pad_id=pad_id, max_new_tokens=max_new_tokens)
    followed = first_tokens(model, prompt, search, choose, candidates=1)
    rows = started(prompt, length_B, followed, max_new_tokens)
    return answers_of(advance(model, branches, rows, choose, enough=B).search)


def answers_of(search: Greedy) -> Decoded:
    """The answers so far."""
    return Decoded(search.tokens_BT, search.index_B)
