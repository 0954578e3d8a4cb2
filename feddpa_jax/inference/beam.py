"""Beam search that gives the same tokens as `transformers` (`num_beams`, no sampling).

Facts about that implementation that decide the tokens: each step keeps the `beams` * (1 + number of
end tokens) best of all continuations; those among the first `beams` of them that end are finished,
scored by their summed log-likelihood over (length ** length_penalty), where the length counts
generated tokens with the end token; the best `beams` that do not end go on. A row is done when no
running beam can still beat its worst finished one (early_stopping=False compares with the score
that the best running beam would have at the present length). At the last step running beams count
as finished.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from feddpa_jax.adapters.lora import Branch
from feddpa_jax.inference.decode import (
    Decoded,
    Followed,
    Prefilled,
    advance,
    first_tokens,
    is_stop,
    pick,
    started,
)
from feddpa_jax.models.decoder import Model

_NEVER = -1.0e9


class Beams(NamedTuple):
    """What a search carries from step to step; W is the number of beams.

    Attributes:
      tokens_BWT: of the running beams.
      index_B: how many they have.
      score_BW: summed log-likelihoods of running beams.
      ended_tokens_BWT: of the finished ones.
      ended_score_BW: length-normalised, `_NEVER` where there is none.
      ended_length_BW: without end tokens.
      open_B: whether a row goes on.
    """

    tokens_BWT: jax.Array
    index_B: jax.Array
    score_BW: jax.Array
    ended_tokens_BWT: jax.Array
    ended_score_BW: jax.Array
    ended_length_BW: jax.Array
    open_B: jax.Array


def beam_search(
    model: Model,
    branches: Sequence[Branch],
    prompt: Prefilled,
    length_B: Int[Array, "B"],
    *,
    beams: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
) -> Decoded:
    """The best finished beam of every row.

    Args:
      model: the frozen base.
      branches: adapters of the rows.
      prompt: the prompts, prefilled.
      length_B: prompt lengths.
      beams: W.
      stop_ids: the tokens of which any ends an answer; at least one.
      pad_id: what follows it.
      max_new_tokens: most tokens of an answer.
      length_penalty: exponent of the length in a finished beam's score.
    """
    B = length_B.shape[0]
    chex.assert_shape(prompt.last_hidden_BD, (B, model.config.width))
    chex.assert_tree_shape_prefix(prompt.cache, (B,))
    choose = functools.partial(follow, stop_ids=stop_ids, length_penalty=length_penalty)
    search = begin(B, beams, pad_id=pad_id, max_new_tokens=max_new_tokens)
    followed = first_tokens(model, prompt, search, choose, candidates=beams)
    rows = started(prompt, length_B, followed, max_new_tokens)
    return best(advance(model, branches, rows, choose, enough=B).search, pad_id)


def begin(rows: int, beams: int, *, pad_id: int, max_new_tokens: int) -> Beams:
    """A search before its first step."""
    B, W, T = rows, beams, max_new_tokens
    return Beams(
        tokens_BWT=jnp.full((B, W, T), pad_id, jnp.int32),
        index_B=jnp.zeros(B, jnp.int32),
        # All beams start alike, so only the first may be continued in the first step.
        score_BW=jnp.tile(jnp.array([0.0] + [_NEVER] * (W - 1)), (B, 1)),
        ended_tokens_BWT=jnp.full((B, W, T), pad_id, jnp.int32),
        ended_score_BW=jnp.full((B, W), _NEVER),
        ended_length_BW=jnp.zeros((B, W), jnp.int32),
        open_B=jnp.ones(B, bool),
    )


def best(end: Beams, pad_id: int) -> Decoded:
    """The best finished beam of every row."""
    tokens_BT, length_B = end.ended_tokens_BWT[:, 0], end.ended_length_BW[:, 0]
    place_1T = jnp.arange(tokens_BT.shape[1])[None]
    return Decoded(jnp.where(place_1T < length_B[:, None], tokens_BT, pad_id), length_B)


def follow(
    now: Beams,
    logits_BWV: Float[Array, "B W V"],
    *,
    stop_ids: tuple[int, ...],
    length_penalty: float = 1.0,
) -> Followed:
    """A step of the search: the beams that run on, and those that finish.

    Args:
      now: the search so far.
      logits_BWV: next-token logits of its running beams.
      stop_ids: the tokens of which any ends an answer.
      length_penalty: exponent of the length in a finished beam's score.
    """
    B, W, T = now.tokens_BWT.shape
    V = logits_BWV.shape[-1]
    Y = W * (1 + len(stop_ids))
    total_BWV = now.score_BW[:, :, None] + jax.nn.log_softmax(logits_BWV)
    # Each beam's continuations that end are as many as end tokens: W others go on.
    score_BY, flat_BY = jax.lax.top_k(total_BWV.reshape(B, W * V), Y)
    from_BY, token_BY = flat_BY // V, (flat_BY % V).astype(jnp.int32)
    place_B11 = now.index_B[:, None, None]
    at_BYT = jnp.arange(T)[None, None] == place_B11
    tokens_BYT = jnp.where(at_BYT, token_BY[:, :, None], pick(now.tokens_BWT, from_BY))
    stops_BY, place_B1 = is_stop(token_BY, stop_ids), place_B11[:, 0]
    ends_BY = stops_BY | (place_B1 == T - 1)
    on_score_BW, on_BW = jax.lax.top_k(jnp.where(ends_BY, _NEVER + score_BY, score_BY), W)
    next_ = now._replace(
        index_B=now.index_B + 1, tokens_BWT=pick(tokens_BYT, on_BW), score_BW=on_score_BW
    )
    length_BY = jnp.where(stops_BY, place_B1, place_B1 + 1)
    search = _finish(now, next_, score_BY, ends_BY, length_BY, tokens_BYT, length_penalty)
    return Followed(search, pick(from_BY, on_BW), pick(token_BY, on_BW))


def _finish(
    now: Beams,
    next_: Beams,
    score_BY: jax.Array,
    ends_BY: jax.Array,
    length_BY: jax.Array,
    tokens_BYT: jax.Array,
    length_penalty: float,
) -> Beams:
    _, W, T = now.tokens_BWT.shape
    norm_B1, Y = next_.index_B[:, None] ** length_penalty, score_BY.shape[1]
    # Only what is among the first W candidates may finish, and only while the row is open.
    may_BY = ends_BY & (jnp.arange(Y) < W)[None] & now.open_B[:, None]
    all_score_BZ = jnp.concatenate(
        [now.ended_score_BW, jnp.where(may_BY, score_BY / norm_B1, _NEVER)], axis=1
    )
    all_length_BZ = jnp.concatenate([now.ended_length_BW, length_BY], axis=1)
    all_tokens_BZT = jnp.concatenate([now.ended_tokens_BWT, tokens_BYT], axis=1)
    ended_score_BW, best_BW = jax.lax.top_k(all_score_BZ, W)
    best_running_B = next_.score_BW[:, 0] / norm_B1[:, 0]
    worst_B = jnp.where(ended_score_BW > _NEVER / 2, ended_score_BW, _NEVER).min(axis=1)
    return next_._replace(
        ended_score_BW=ended_score_BW,
        ended_length_BW=pick(all_length_BZ, best_BW),
        ended_tokens_BWT=pick(all_tokens_BZT, best_BW),
        open_B=now.open_B & (best_running_B > worst_B) & (next_.index_B < T),
    )
