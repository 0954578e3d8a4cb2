"""How many examples each client has, for partitioners that let the user choose."""

from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from feddpa_jax.checked_settings import Count
from feddpa_jax.partitioning.pool import Pool
from feddpa_jax.types import UserError

Sizes = Literal["equal", "uniform", "lognormal"] | tuple[Count, ...]
Sigma = Annotated[float, Ge(0), Le(10)]


def client_sizes(
    sizes: Sizes, sigma: float, pool: Pool, rng: np.random.Generator, *, of: str = "iid"
) -> np.ndarray:
    """The number of examples of each client.

    Args:
      sizes: "equal", sizes that differ by one at most; "uniform", in proportion to draws between 0
        and 1; "lognormal", in proportion to exp(sigma z) with a standard normal z, as sizes of
        users' data often are; or the numbers themselves, which may leave examples over.
      sigma: of "lognormal".
      pool: what is divided. Clients whose proportion is too small have `pool.minimum`, and the
        others share the rest.
      rng: the randomness.
      of: the partitioner, for messages.

    Returns:
      int64 [C].

    Raises:
      UserError: given numbers that fit neither the examples nor the number of clients.
    """
    if isinstance(sizes, tuple):
        return _given(sizes, pool, of)
    clients = pool.needed_clients()
    if sizes == "lognormal":
        weight_C = np.exp(sigma * rng.standard_normal(clients))
    else:
        weight_C = rng.random(clients) if sizes == "uniform" else np.ones(clients)
    return _at_least(weight_C, pool.examples, pool.minimum)


def _given(sizes: tuple[int, ...], pool: Pool, of: str) -> np.ndarray:
    field = f"partition: {of}: sizes"
    if not sizes:
        raise UserError(f"{field}: is empty; give each client's number of examples")
    if pool.clients not in (None, len(sizes)):
        raise UserError(
            f"{field}: has {len(sizes)} numbers for {pool.clients} clients; give as many, or leave "
            "clients out"
        )
    if (least := min(sizes)) < pool.minimum:
        raise UserError(
            f"{field}: {least} is less than the minimum of {pool.minimum}; raise it, or lower "
            "minimum"
        )
    if sum(sizes) > pool.examples:
        raise UserError(
            f"{field}: are {sum(sizes)} examples together, and there are {pool.examples}; lower "
            "them"
        )
    return np.array(sizes, np.int64)


def apportion(weight_C: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to weights, by largest remainders.

    >>> apportion(np.array([3.0, 2.0, 1.0]), 10)
    array([5, 3, 2])
    """
    share_C = weight_C / weight_C.sum() * total
    found_C = np.floor(share_C).astype(np.int64)
    short = total - found_C.sum()
    found_C[np.argsort(found_C - share_C, kind="stable")[:short]] += 1
    return found_C


def _at_least(weight_C: np.ndarray, total: int, minimum: int) -> np.ndarray:
    """Whole numbers in proportion to weights, but none below a minimum."""
    free_C = np.ones(len(weight_C), bool)
    while True:
        found_C = np.full(len(weight_C), minimum, np.int64)
        rest = total - minimum * int((~free_C).sum())
        found_C[free_C] = apportion(weight_C[free_C], rest)
        low_C = free_C & (found_C < minimum)
        if not low_C.any():
            return found_C
        free_C &= ~low_C
