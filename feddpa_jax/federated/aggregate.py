"""The server's average of the participants' adapters (McMahan et al., *FedAvg*, arXiv 1602.05629).

A and B are averaged each on its own, as the paper does: mean(A) mean(B) is not mean(A B).
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from feddpa_jax.adapters.lora import Adapter


def shares(examples_C: np.ndarray, kind: str) -> np.ndarray:
    """Each participant's share in the average, adding up to 1: float32 [C].

    Args:
      examples_C: the participants' numbers of training examples.
      kind: "uniform", or by number of "examples".

    >>> shares(np.array([1, 3]), "examples").tolist()
    [0.25, 0.75]
    """
    weight_C = np.ones(len(examples_C)) if kind == "uniform" else np.asarray(examples_C, float)
    return (weight_C / weight_C.sum()).astype(np.float32)


@jax.jit
def weighted_sum(adapters_C: Adapter, share_C: jax.Array) -> Adapter:
    """The sum over the client axis, each times its share; who has none may hold anything.

    All leaves are reduced as one vector: over a mesh that is a single all-reduce.
    """
    chex.assert_rank(share_C, 1)
    chex.assert_tree_shape_prefix(adapters_C, share_C.shape)
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), adapters_C))
    flat_CX = jnp.concatenate(
        [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(adapters_C)], axis=1
    )
    # 0 times NaN is NaN, and an `upload` may divide by what an empty place has not.
    flat_CX = jnp.where(share_C[:, None] == 0.0, 0.0, flat_CX)
    return unravel(jnp.tensordot(share_C, flat_CX, axes=1))
