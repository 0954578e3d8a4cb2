"""Which clients take part in a round."""

import functools
import math
from collections.abc import Sequence

import numpy as np


def how_many(clients: int, participation: float) -> int:
    """How many of the clients take part in a round: max(1, floor(participation * C)).

    >>> how_many(10, 0.3)
    3
    """
    return max(1, math.floor(participation * clients + 1e-9))


def sample_participants(
    ids: Sequence[int], *, participation: float, seed: int, round_number: int
) -> np.ndarray:
    """A uniform sample of max(1, floor(participation * C)) clients without replacement.

    Each client draws a number that depends on its own id, the seed and the round alone, and the
    smallest take part; so the sample does not depend on the order of the clients.

    Args:
      ids: a number for each client, from its name.
      participation: fraction of clients in a round, in (0, 1].
      seed: the run's seed.
      round_number: from 0.

    Returns:
      Indexes into `ids`, ascending, int32.

    >>> sample_participants([5, 6, 7, 8], participation=1.0, seed=0, round_number=3).tolist()
    [0, 1, 2, 3]
    """
    return _sample(tuple(ids), participation, seed, round_number)


@functools.lru_cache(maxsize=4)  # A round asks several times.
def _sample(ids: tuple[int, ...], participation: float, seed: int, round_number: int) -> np.ndarray:
    count = how_many(len(ids), participation)
    draws = [np.random.default_rng([seed, round_number, ident, 1]).random() for ident in ids]
    found = np.sort(np.argsort(draws, kind="stable")[:count]).astype(np.int32)
    found.flags.writeable = False
    return found
