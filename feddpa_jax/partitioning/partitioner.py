"""What a partitioner is: a function from columns and a random generator to each example's client.

    @fd.partitioners.register
    def by_length(pool, rng, column="output"):
        lengths = [len(text) for text in pool.values(column)]
        client_I = np.empty(pool.examples, int)
        client_I[np.argsort(lengths)] = np.sort(np.arange(pool.examples) % pool.clients)
        return client_I

What follows `pool` and `rng` is what a specification gives: `by_length(output)`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from feddpa_jax.registry import Registry

# Of an example that belongs to no client.
LEFT_OUT = -1


class Assignment(NamedTuple):
    """Each example's client, where clients have names of their own.

    Attributes:
      client_I: int64 [I], from 0 on; `LEFT_OUT` for an example that belongs to no client.
      names: of the clients.
    """

    client_I: np.ndarray
    names: tuple[str, ...]


Assign = Callable[..., np.ndarray | Assignment]


class Partitioner(NamedTuple):
    """A partitioner as it is registered.

    Attributes:
      assign: takes a `Pool`, a `numpy.random.Generator` and its own parameters; gives int [I] from
        0 on, `LEFT_OUT` for an example that belongs to no client, or an `Assignment`.
      parameters: its own, by name.
    """

    assign: Assign
    parameters: Mapping[str, inspect.Parameter]


def _partitioner(function: Any) -> Partitioner:
    """A partitioner as it is registered.

    Raises:
      TypeError: it is no function of a pool and a random generator.
    """
    if isinstance(function, Partitioner):
        return function
    if not callable(function):
        raise TypeError("a partitioner is a function of a pool and a random generator")
    try:
        found = inspect.signature(function, eval_str=True).parameters
    except NameError:  # An annotation that is known to type checkers alone.
        found = inspect.signature(function).parameters
    if len(found) < 2:
        raise TypeError("a partitioner takes a pool and a random generator first")
    return Partitioner(cast(Assign, function), dict(list(found.items())[2:]))


PARTITIONERS: Registry[Partitioner] = Registry(
    "partitioner",
    "partition",
    group="feddpa_jax.partitioners",
    modules=("feddpa_jax.partitioning.partitioners",),
    wrap=_partitioner,
)
