"""What is made of the head's logits, some positions at a time: all at once would fill the memory.

Logits are [V] numbers of float32 a position: of SmolLM2 197 kB, and a third of a block's tokens may
be response positions. The head is frozen, so the loss has a gradient towards the hidden states
alone, which is computed in the forward pass while a chunk's logits are there: none are kept for the
backward pass, and none are computed again.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from feddpa_jax.models.decoder import Model

# Bytes of float32 logits that exist at once.
MOST_LOGITS = 2**28


def positions_at_once(vocabulary: int) -> int:
    """Of how many positions there are logits at once.

    >>> positions_at_once(49152), positions_at_once(512)
    (1365, 131072)
    """
    return max(1, MOST_LOGITS // (4 * vocabulary))


def by_positions(function: Callable[..., Any], at_once: int, *arrays_P: jax.Array) -> Any:
    """`function` of some positions at a time, its results put together again.

    Chunks are of equal size, and their number is the least that keeps them within `at_once`. A
    chunk takes every n-th position, so that positions split over devices stay so.

    Args:
      function: from arrays with a leading axis of positions to a tree of such arrays, in which
        each position depends on itself alone.
      at_once: the most positions that it is given.
      *arrays_P: its arguments, [P, ...] each.

    >>> by_positions(lambda x_P: x_P * x_P.shape[0], 3, jnp.arange(5)).tolist()
    [0, 3, 6, 9, 12]
    """
    positions = arrays_P[0].shape[0]
    chunks = -(-positions // at_once)
    if chunks <= 1:
        return function(*arrays_P)
    size = -(-positions // chunks)

    def divided(x_P: jax.Array) -> jax.Array:
        filled = jnp.pad(x_P, [(0, size * chunks - positions), *[(0, 0)] * (x_P.ndim - 1)])
        return filled.reshape(size, chunks, *x_P.shape[1:]).swapaxes(0, 1)

    def whole(x_NS: jax.Array) -> jax.Array:
        return x_NS.swapaxes(0, 1).reshape(size * chunks, *x_NS.shape[2:])[:positions]

    found = jax.lax.map(lambda given: function(*given), tuple(divided(x_P) for x_P in arrays_P))
    return jax.tree.map(whole, found)


def weighted_nll(
    model: Model,
    hidden_PD: Float[Array, "P D"],
    target_P: Int[Array, "P"],
    weight_P: Float[Array, "P"],
    at_once: int | None = None,
) -> Float[Array, "P"]:
    """weight_p times the negative log-likelihood of each position's target, in nats, float32.

    Args:
      model: whose head it is; no gradient of it is computed.
      hidden_PD: final hidden states.
      target_P: the token that followed each.
      weight_P: its weight in a loss; 0 for padding.
      at_once: the most positions of which there are logits at once; None: `positions_at_once`.
    """
    if at_once is None:
        at_once = positions_at_once(model.config.vocab_size)
    return _weighted_nll(at_once, model, hidden_PD, target_P, weight_P)


def _of_chunk(
    model: Model, hidden_PD: jax.Array, target_P: jax.Array, weight_P: jax.Array
) -> jax.Array:
    logits_PV = model.logits(hidden_PD)
    at_target_P = jnp.take_along_axis(logits_PV, target_P[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(logits_PV, axis=1) - at_target_P) * weight_P


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_nll(
    at_once: int, model: Model, hidden_PD: jax.Array, target_P: jax.Array, weight_P: jax.Array
) -> jax.Array:
    function = functools.partial(_of_chunk, model)
    return by_positions(function, at_once, hidden_PD, target_P, weight_P)


def _forward(
    at_once: int, model: Model, hidden_PD: jax.Array, target_P: jax.Array, weight_P: jax.Array
):
    def chunk(hidden_PD: jax.Array, target_P: jax.Array, weight_P: jax.Array):
        def loss(hidden_PD: jax.Array, weight_P: jax.Array) -> jax.Array:
            return _of_chunk(model, hidden_PD, target_P, weight_P)

        loss_P, pull = jax.vjp(loss, hidden_PD, weight_P)
        return loss_P, pull(jnp.ones_like(loss_P))

    return by_positions(chunk, at_once, hidden_PD, target_P, weight_P)


def _backward(at_once: int, residuals: tuple[jax.Array, jax.Array], g_P: jax.Array):
    by_hidden_PD, by_weight_P = residuals
    return None, g_P[:, None] * by_hidden_PD, None, g_P * by_weight_P


_weighted_nll.defvjp(_forward, _backward)
