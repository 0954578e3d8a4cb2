"""The objectives that the tests of the engine train under; each is compiled once."""

import functools
from typing import Any

import jax.numpy as jnp

from feddpa_jax.adapters.mix import Term, alone
from feddpa_jax.training.step import Frozen, Objective

ALONE = Objective(alone("local"))
NOTHING = Frozen({}, {})


@functools.cache
def beside(local_weight: float = 0.5, detach: bool = False) -> Objective:
    """A local adapter beside a frozen global one, as in FedDPA-T's local phase."""

    def mix(parts):
        rest = Term(parts["global"], 1.0 - jnp.float32(local_weight), detach)
        return [rest, Term(parts["local"], local_weight)]

    return Objective(mix)


def frozen_of(adapter: Any) -> Frozen:
    """A frozen global adapter, or nothing."""
    return NOTHING if adapter is None else Frozen({"global": adapter}, {})
