"""Gradient descent inside a rule."""

from collections.abc import Callable
from typing import Any

import jax
import optax


def descend(
    loss: Callable[[Any], jax.Array], start: Any, *, rate: jax.Array | float, steps: int
) -> Any:
    """What `steps` steps of Adam make of some numbers (Kingma and Ba, arXiv 1412.6980).

    Adam treats every number alone: where the loss is a sum over instances, each with its own
    numbers, one instance's do not depend on another's.

    Args:
      loss: of the numbers.
      start: the numbers, a tree of arrays.
      rate: step size.
      steps: how many.

    >>> import jax.numpy as jnp
    >>> round(float(descend(lambda x: jnp.square(x - 1.0), jnp.zeros(()), rate=0.1, steps=100)), 1)
    1.0
    """
    tx = optax.adam(rate)

    def step(_: jax.Array, now: tuple[Any, optax.OptState]) -> tuple[Any, optax.OptState]:
        learned, state = now
        updates, state = tx.update(jax.grad(loss)(learned), state)
        return optax.apply_updates(learned, updates), state

    return jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))[0]
