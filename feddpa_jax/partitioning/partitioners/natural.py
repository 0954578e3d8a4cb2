"""The clients that the data have already: users, devices, authors."""

import numpy as np

from feddpa_jax.partitioning.partitioner import LEFT_OUT, PARTITIONERS, Assignment
from feddpa_jax.partitioning.pool import Pool
from feddpa_jax.types import UserError


@PARTITIONERS.register
def natural(pool: Pool, rng: np.random.Generator, column: str) -> Assignment:
    """Makes a client of each value of a column.

    Values with fewer examples than the minimum are left out. If a number of clients is asked for,
    so many of the others are drawn.

    Args:
      pool: what is divided.
      rng: the randomness.
      column: names each example's user.

    Returns:
      Each example's client, and the clients' names: the values, sorted.

    Raises:
      UserError: no such column, or fewer values with enough examples than clients are asked for.
    """
    names, label_I = labels = pool.labels(column)
    kept = np.flatnonzero(labels.counts >= pool.minimum)
    wanted = len(kept) if pool.clients is None else pool.clients
    if not len(kept):
        raise UserError(
            f"minimum: no value of column {column!r} has {pool.minimum} examples; lower it"
        )
    if wanted > len(kept):
        raise UserError(
            f"clients: {wanted} are asked for, and column {column!r} has {len(kept)} values with "
            f"the minimum of {pool.minimum} examples; lower clients or minimum"
        )
    kept = np.sort(rng.permutation(kept)[:wanted])
    client_K = np.full(len(names), LEFT_OUT)
    client_K[kept] = np.arange(len(kept))
    return Assignment(client_K[label_I], tuple(names[k] for k in kept))
