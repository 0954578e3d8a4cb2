"""Which of a client's training examples stand for its data when instances are weighed."""

import numpy as np


def draw_support(count: int, support: int, *, seed: int, client: int) -> np.ndarray:
    """Indexes of the client's support, drawn once from the seed.

    Args:
      count: the client's number of training examples.
      support: M; all examples serve if there are fewer (then some stand twice).
      seed: the run's seed.
      client: the client's id.

    Returns:
      int indexes, [M].
    """
    return _draw(np.random.default_rng([seed, client, 2]), count, support)


def draw_support_per_instance(
    count: int, support: int, instances: int, *, seed: int, client: int
) -> np.ndarray:
    """A new support for every instance, as the released code draws it: int indexes [I, M].

    Instance i's draw depends on the seed, the client and i alone.
    """
    return np.stack(
        [
            _draw(np.random.default_rng([seed, client, 3, i]), count, support)
            for i in range(instances)
        ]
    )


def _draw(rng: np.random.Generator, count: int, support: int) -> np.ndarray:
    if count >= support:
        return rng.choice(count, size=support, replace=False)
    return np.resize(rng.permutation(count), support)
