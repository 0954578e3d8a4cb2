"""Gradient descent inside a rule."""

from collections.abc import Callable
from typing import Any

import jax
import optax


def descend(
    loss: Callable[[Any], jax.Array], start: Any, tx: optax.GradientTransformation, *, steps: int
) -> Any:
    """What an optimizer makes of some numbers.

    Args:
      loss: of the numbers; a sum over instances where each has its own. With an optimizer that
        treats every number alone, as `optax.sgd` does, one instance's then depend on no other's.
      start: the numbers, a tree of arrays.
      tx: the optimizer.
      steps: how many.

    >>> import jax.numpy as jnp
    >>> loss = lambda x: jnp.square(x - 1.0)
    >>> round(float(descend(loss, jnp.zeros(()), optax.sgd(0.25), steps=1)), 2)
    0.5
    """

    def step(_: jax.Array, now: tuple[Any, optax.OptState]) -> tuple[Any, optax.OptState]:
        learned, state = now
        updates, state = tx.update(jax.grad(loss)(learned), state)
        return optax.apply_updates(learned, updates), state

    return jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))[0]


def adam(rate: jax.Array | float) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, arXiv 1412.6980) for losses that are computed in float32.

    Its epsilon is above their rounding, so that numbers which do not matter stay where they are.
    """
    return optax.adam(rate, eps=1e-5)
