"""Beam search that gives the same tokens as `transformers` (`num_beams`, no sampling).

Facts about that implementation that decide the tokens: each step keeps the `beams` * (1 + number of
end tokens) best of all continuations; those among the first `beams` of them that end are finished,
scored by their summed log-likelihood over (length ** length_penalty), where the length counts
generated tokens with the end token; the best `beams` that do not end go on. A row is done when no
running beam can still beat its worst finished one (early_stopping=False compares with the score
that the best running beam would have at the present length). At the last step running beams count
as finished.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from feddpa_jax.adapters.lora import Branch
from feddpa_jax.inference.decode import Decoded, is_stop, step
from feddpa_jax.models.decoder import Model
from feddpa_jax.models.kv_cache import Cache

_NEVER = -1.0e9


class Beams(NamedTuple):
    """What a search carries from step to step; W is the number of beams."""

    index: jax.Array
    tokens_BWT: jax.Array
    score_BW: jax.Array  # summed log-likelihood of running beams
    ended_tokens_BWT: jax.Array
    ended_score_BW: jax.Array  # length-normalised, _NEVER where there is none
    ended_length_BW: jax.Array
    open_B: jax.Array


class Followed(NamedTuple):
    """The beams after a step, and what their next hidden states come from.

    Attributes:
      beams: the running and the finished ones.
      row_X: the row, of B*W row-major, that each running beam continues.
      token_X: the token that it continues it with.
    """

    beams: Beams
    row_X: jax.Array
    token_X: jax.Array


def repeat_rows(branches: Sequence[Branch], beams: int) -> tuple[Branch, ...]:
    """The branches of a batch in which every row stands `beams` times; banks are not repeated."""
    return tuple(
        dataclasses.replace(
            branch,
            client_B=jnp.repeat(branch.client_B, beams),
            weight=jax.tree.map(lambda w: jnp.repeat(w, beams, axis=0), branch.weight),
            key_B2=None if branch.key_B2 is None else jnp.repeat(branch.key_B2, beams, axis=0),
        )
        for branch in branches
    )


def _pick(values: jax.Array, chosen_BX: jax.Array) -> jax.Array:
    """values[b, chosen[b, x]] for any trailing axes."""
    return jax.vmap(lambda row, chosen: row[chosen])(values, chosen_BX)


def beam_search(
    model: Model,
    branches: Sequence[Branch],
    prompt_hidden_BD: Float[Array, "B D"],
    cache: Cache,
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
      prompt_hidden_BD: final hidden state at each row's last prompt token.
      cache: the prefilled cache of the rows, with `max_new_tokens` free slots after each prompt.
      length_B: prompt lengths.
      beams: W.
      stop_ids: the tokens of which any ends an answer; at least one.
      pad_id: what follows it.
      max_new_tokens: most tokens of an answer.
      length_penalty: exponent of the length in a finished beam's score.
    """
    chex.assert_shape(prompt_hidden_BD, (length_B.shape[0], model.config.width))
    chex.assert_tree_shape_prefix(cache, (length_B.shape[0],))
    wide = repeat_rows(branches, beams)
    length_X = jnp.repeat(length_B, beams)

    def advance(now: tuple[Beams, jax.Array, Cache]) -> tuple[Beams, jax.Array, Cache]:
        running, hidden_XD, cache = now
        followed = follow(
            running, model.logits(hidden_XD), stop_ids=stop_ids, length_penalty=length_penalty
        )
        cache = jax.tree.map(lambda leaf: leaf[followed.row_X], cache)
        hidden_XD, cache = step(model, wide, cache, followed.token_X, length_X + running.index)
        return followed.beams, hidden_XD, cache

    start = (
        begin(length_B.shape[0], beams, pad_id=pad_id, max_new_tokens=max_new_tokens),
        jnp.repeat(prompt_hidden_BD, beams, axis=0),
        jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), cache),
    )
    end, _, _ = jax.lax.while_loop(lambda now: unfinished(now[0]), advance, start)
    return best(end, pad_id)


def begin(rows: int, beams: int, *, pad_id: int, max_new_tokens: int) -> Beams:
    """A search before its first step."""
    B, W, T = rows, beams, max_new_tokens
    return Beams(
        index=jnp.int32(0),
        tokens_BWT=jnp.full((B, W, T), pad_id, jnp.int32),
        # All beams start alike, so only the first may be continued in the first step.
        score_BW=jnp.tile(jnp.array([0.0] + [_NEVER] * (W - 1)), (B, 1)),
        ended_tokens_BWT=jnp.full((B, W, T), pad_id, jnp.int32),
        ended_score_BW=jnp.full((B, W), _NEVER),
        ended_length_BW=jnp.zeros((B, W), jnp.int32),
        open_B=jnp.ones(B, bool),
    )


def unfinished(now: Beams) -> jax.Array:
    """Whether a row is still open, and tokens are left."""
    return (now.index < now.tokens_BWT.shape[-1]) & now.open_B.any()


def best(end: Beams, pad_id: int) -> Decoded:
    """The best finished beam of every row."""
    tokens_BT, length_B = end.ended_tokens_BWT[:, 0], end.ended_length_BW[:, 0]
    place_1T = jnp.arange(tokens_BT.shape[1])[None]
    return Decoded(jnp.where(place_1T < length_B[:, None], tokens_BT, pad_id), length_B)


def follow(
    now: Beams,
    logits_XV: Float[Array, "X V"],
    *,
    stop_ids: tuple[int, ...],
    length_penalty: float = 1.0,
) -> Followed:
    """A step of the search: the beams that run on, and those that finish.

    Args:
      now: the search so far.
      logits_XV: next-token logits of its B*W running beams.
      stop_ids: the tokens of which any ends an answer.
      length_penalty: exponent of the length in a finished beam's score.
    """
    B, W, T = now.tokens_BWT.shape
    Y = W * (1 + len(stop_ids))
    logp_XV = jax.nn.log_softmax(logits_XV)
    V = logp_XV.shape[-1]
    total_BWV = now.score_BW[:, :, None] + logp_XV.reshape(B, W, V)
    # Each beam's continuations that end are as many as end tokens: W others go on.
    score_BY, flat_BY = jax.lax.top_k(total_BWV.reshape(B, W * V), Y)
    from_BY, token_BY = flat_BY // V, (flat_BY % V).astype(jnp.int32)
    tokens_BYT = _pick(now.tokens_BWT, from_BY).at[:, :, now.index].set(token_BY)
    ends_BY = is_stop(token_BY, stop_ids) | (now.index == T - 1)
    on_score_BW, on_BW = jax.lax.top_k(jnp.where(ends_BY, _NEVER + score_BY, score_BY), W)
    next_ = now._replace(
        index=now.index + 1, tokens_BWT=_pick(tokens_BYT, on_BW), score_BW=on_score_BW
    )
    length_BY = jnp.where(is_stop(token_BY, stop_ids), now.index, now.index + 1)
    return Followed(
        _finish(now, next_, score_BY, ends_BY, length_BY, tokens_BYT, length_penalty),
        (jnp.arange(B)[:, None] * W + _pick(from_BY, on_BW)).reshape(-1),
        _pick(token_BY, on_BW).reshape(-1),
    )


def _finish(
    now: Beams,
    next_: Beams,
    score_BY: jax.Array,
    ends_BY: jax.Array,
    length_BY: jax.Array,
    tokens_BYT: jax.Array,
    length_penalty: float,
) -> Beams:
    count, W, Y = next_.index, now.score_BW.shape[1], score_BY.shape[1]
    normal_BY = score_BY / count**length_penalty
    # Only what is among the first W candidates may finish, and only while the row is open.
    may_BY = ends_BY & (jnp.arange(Y) < W)[None] & now.open_B[:, None]
    all_score_BZ = jnp.concatenate(
        [now.ended_score_BW, jnp.where(may_BY, normal_BY, _NEVER)], axis=1
    )
    all_length_BZ = jnp.concatenate([now.ended_length_BW, length_BY], axis=1)
    all_tokens_BZT = jnp.concatenate([now.ended_tokens_BWT, tokens_BYT], axis=1)
    ended_score_BW, best_BW = jax.lax.top_k(all_score_BZ, W)
    best_running_B = next_.score_BW[:, 0] / count**length_penalty
    worst_B = jnp.where(ended_score_BW > _NEVER / 2, ended_score_BW, _NEVER).min(axis=1)
    return next_._replace(
        ended_score_BW=ended_score_BW,
        ended_length_BW=_pick(all_length_BZ, best_BW),
        ended_tokens_BWT=_pick(all_tokens_BZT, best_BW),
        open_B=now.open_B & (best_running_B > worst_B),
    )
