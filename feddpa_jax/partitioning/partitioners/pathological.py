"""Clients with few labels each: the pathological non-IID partition.

McMahan, Moore, Ramage, Hampson, Agueera y Arcas, *Communication-Efficient Learning of Deep Networks
from Decentralized Data*, AISTATS 2017, arXiv 1602.05629: the examples are sorted by label, cut into
shards of equal size, and each client gets k shards at random.
"""

import numpy as np

from feddpa_jax.checked_settings import Count
from feddpa_jax.partitioning.partitioner import PARTITIONERS
from feddpa_jax.partitioning.pool import Labels, Pool
from feddpa_jax.partitioning.sizes import apportion
from feddpa_jax.types import UserError


@PARTITIONERS.register
def pathological(
    pool: Pool, rng: np.random.Generator, column: str, *, k: Count = 2, tries: Count = 100
) -> np.ndarray:
    """Gives each client k shards, of k different labels where that is possible.

    Args:
      pool: what is divided.
      rng: the randomness.
      column: of the labels.
      k: shards of a client, and so the most labels that it has.
      tries: how often shards are dealt until every client has its fewest examples.

    Returns:
      Each example's client: int64 [I].

    Raises:
      UserError: too few shards for the labels, too few examples for the shards, or no try gave
        every client enough.
    """
    clients = pool.needed_clients()
    labels = pool.labels(column)
    shards_K = _shards(labels, clients, k, column)
    label_S = np.repeat(np.arange(len(shards_K)), shards_K)
    sizes_S = np.concatenate(
        [apportion(np.ones(s), int(n)) for s, n in zip(shards_K, labels.counts, strict=True)]
    )
    for _ in range(tries):
        shard_CK = _deal(label_S, clients, k, rng)
        least = sizes_S[shard_CK].sum(axis=1).min()
        if least >= pool.minimum:
            break
    else:
        raise UserError(
            f"partition: pathological: in {tries} tries some client always had fewer than "
            f"{pool.minimum} examples ({least} in the last); lower --minimum or --clients, or "
            "raise k"
        )
    client_S = np.empty(len(label_S), np.int64)
    client_S[shard_CK.ravel()] = np.repeat(np.arange(clients), k)
    # Paper: shards may cross from one label to the next; ours do not, so k labels are the most.
    order = rng.permutation(pool.examples)
    by_label = order[np.argsort(labels.label_I[order], kind="stable")]
    client_I = np.empty(pool.examples, np.int64)
    client_I[by_label] = np.repeat(client_S, sizes_S)
    return client_I


def _shards(labels: Labels, clients: int, k: int, column: str) -> np.ndarray:
    """How many shards each label is cut into: about in proportion to its examples."""
    counts_K, shards = labels.counts, clients * k
    if shards < len(counts_K):
        raise UserError(
            f"partition: pathological: {clients} clients with {k} labels each cannot hold the "
            f"{len(counts_K)} labels of column {column!r}; raise --clients or k"
        )
    if shards > counts_K.sum():
        raise UserError(
            f"partition: pathological: {counts_K.sum()} examples cannot be cut into {clients} x "
            f"{k} shards; lower --clients or k"
        )
    return 1 + _within(counts_K.astype(float), shards - len(counts_K), counts_K - 1)


def _within(weight_K: np.ndarray, total: int, most_K: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to weights, but none above its most."""
    free_K = most_K > 0
    found_K = np.zeros(len(weight_K), np.int64)
    while total > 0:
        found_K[free_K] = apportion(weight_K[free_K], total)
        high_K = free_K & (found_K > most_K)
        if not high_K.any():
            break
        found_K[high_K] = most_K[high_K]
        total -= int(most_K[high_K].sum())
        free_K &= ~high_K
    return found_K


def _deal(label_S: np.ndarray, clients: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """The shards of each client [C, k], as few as can be of a label that it has already."""
    shard_CK = rng.permutation(len(label_S)).reshape(clients, k)
    label_CK = np.sort(label_S[shard_CK], axis=1)
    for c in np.flatnonzero((label_CK[:, 1:] == label_CK[:, :-1]).any(axis=1)):
        for place in range(k):
            _swap_double(shard_CK, label_S, int(c), place, rng)
    return shard_CK


def _swap_double(
    shard_CK: np.ndarray, label_S: np.ndarray, c: int, place: int, rng: np.random.Generator
) -> None:
    """Swaps a shard whose label its client has twice for another's, if neither then has two."""
    own_K = label_S[shard_CK[c]]
    own = own_K[place]
    if (own_K == own).sum() == 1:
        return
    beside = np.delete(own_K, place)
    clients, k = shard_CK.shape
    for other in rng.integers(clients * k, size=20):
        d, at = divmod(int(other), k)
        theirs_K = label_S[shard_CK[d]]
        if theirs_K[at] not in beside and own not in np.delete(theirs_K, at):
            shard_CK[c, place], shard_CK[d, at] = shard_CK[d, at], shard_CK[c, place]
            return
