"""Examples dealt out at random: every client's data are alike, up to chance."""

import numpy as np

from feddpa_jax.partitioning.client_sizes import Sigma, Sizes, client_sizes
from feddpa_jax.partitioning.partitioner import LEFT_OUT, PARTITIONERS
from feddpa_jax.partitioning.pool import Pool


@PARTITIONERS.register
def iid(
    pool: Pool, rng: np.random.Generator, *, sizes: Sizes = "equal", sigma: Sigma = 1.0
) -> np.ndarray:
    """Gives each client a random part.

    Args:
      pool: what is divided.
      rng: the randomness.
      sizes: as of `client_sizes`.
      sigma: likewise.

    Returns:
      Each example's client: int64 [I].

    Raises:
      UserError: the sizes do not fit the examples and clients.
    """
    sizes_C = client_sizes(sizes, sigma, pool, rng)
    client_I = np.full(pool.examples, LEFT_OUT)
    drawn = rng.permutation(pool.examples)[: sizes_C.sum()]
    client_I[drawn] = np.repeat(np.arange(len(sizes_C)), sizes_C)
    return client_I
