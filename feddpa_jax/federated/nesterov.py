"""A server step with Nesterov's momentum, the outer optimizer of DiLoCo.

Douillard et al.: *DiLoCo: Distributed Low-Communication Training of Language Models*, arXiv
2311.08105, Algorithm 1. With w what was sent to all, and w_k what came back,

    change = sum over k of share_k * (w - w_k),
    velocity = momentum * velocity + change,
    w = w - learning_rate * (change + momentum * velocity).

The learning rate 1 without momentum takes the mean.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from feddpa_jax.federated.server import Moment, Sent, ServerStep


def nesterov(part: str, velocity: str, *, learning_rate: float, momentum: float) -> ServerStep:
    """The step of one part of the server's, of which participants send trained copies.

    Args:
      part: its name.
      velocity: the name of a part of the same shapes, zero at the start.
      learning_rate: of the outer optimizer.
      momentum: of the outer optimizer.
    """

    def step(sent: Sent, server: Mapping[str, Any], moment: Moment) -> dict[str, Any]:
        del moment
        change = jax.tree.map(jnp.subtract, server[part], sent[part])
        moving = jax.tree.map(lambda v, d: momentum * v + d, server[velocity], change)
        new = jax.tree.map(
            lambda w, d, v: w - learning_rate * (d + momentum * v), server[part], change, moving
        )
        return {part: new, velocity: moving}

    return step
