"""The server's average of the participants' adapters (McMahan et al., *FedAvg*, arXiv 1602.05629).

A and B are averaged each on its own, as the paper does: mean(A) mean(B) is not mean(A B).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.lora import Adapter

Aggregate = Callable[[Adapter, np.ndarray], Adapter]


def weighted_mean(adapters_C: Adapter, weight_C: jax.Array) -> Adapter:
    """The mean over the client axis with weights that need not add up to one."""
    share_C = weight_C / weight_C.sum()
    return jax.tree.map(lambda leaf: jnp.tensordot(share_C, leaf, axes=1), adapters_C)


def make_aggregate(kind: str) -> Aggregate:
    """`aggregate(adapters_C, examples_C) -> adapter`, "uniform" or by number of "examples"."""

    def aggregate(adapters_C: Adapter, examples_C: np.ndarray) -> Adapter:
        weight_C = np.ones(len(examples_C)) if kind == "uniform" else examples_C
        return weighted_mean(adapters_C, jnp.asarray(weight_C, jnp.float32))

    return aggregate
