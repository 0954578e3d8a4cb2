"""Penalties on a client's loss, of which the engine adds the gradient to each update's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from feddpa_jax.training.step import Tree


def proximal(part: str, *, to: str, strength: float) -> Callable[[Tree, Tree], jax.Array]:
    """Strength / 2 * ||part - to||^2 over the leaves of `part` in training.

    Li et al., *FedProx*, arXiv 1812.06127, eq. 2; Li et al., *Ditto*, arXiv 2012.04221, eq. 1.

    Args:
      part: in training.
      to: a frozen part beside it with the same leaves.
      strength: mu of FedProx, lambda of Ditto.
    """

    def penalty(trained: Tree, frozen: Tree) -> jax.Array:
        squares = [
            jnp.square(leaf - frozen[to][target][name]).sum()
            for target, leaves in trained[part].items()
            for name, leaf in leaves.items()
        ]
        return 0.5 * strength * jnp.stack(squares).sum()

    return penalty
