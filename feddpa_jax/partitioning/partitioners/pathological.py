"""Clients with few labels each: the pathological non-IID partition.

McMahan, Moore, Ramage, Hampson, Agueera y Arcas, *Communication-Efficient Learning of Deep Networks
from Decentralized Data*, AISTATS 2017, arXiv 1602.05629: the examples are sorted by label and cut
into shards, and each client gets k shards at random.

Ours differs: no shard crosses from one label to the next, and a client's k shards are of k
different labels where that is possible.
"""

import numpy as np

from feddpa_jax.checked_settings import Count
from feddpa_jax.partitioning.client_sizes import apportion
from feddpa_jax.partitioning.partitioner import PARTITIONERS
from feddpa_jax.partitioning.pool import Labels, Pool
from feddpa_jax.types import UserError


@PARTITIONERS.register
def pathological(
    pool: Pool, rng: np.random.Generator, column: str, *, k: Count = 2, tries: Count = 100
) -> np.ndarray:
    """Gives each client k shards, of k different labels where that is possible.

    A label's shards are equal, and their number is about in proportion to its examples. So clients
    differ little in size, unless a label has more than 1/k of all examples.

    Args:
      pool: what is divided.
      rng: the randomness.
      column: of the labels.
      k: labels of a client.
      tries: how often shards are dealt until every client has its fewest examples.

    Returns:
      Each example's client: int64 [I].

    Raises:
      UserError: too few shards for the labels, too few examples for the shards, or no try gave
        every client enough.
    """
    clients = pool.needed_clients()
    labels = pool.labels(column)
    if k > len(labels.names):
        raise UserError(
            f"partition: pathological: k: clients cannot have {k} labels, as column {column!r} has "
            f"{len(labels.names)}; lower k"
        )
    single_K, double_K = _shards(labels, clients, k, column)
    shards_K = single_K + double_K
    sizes_S = np.concatenate(
        [apportion(np.ones(s), int(n)) for s, n in zip(shards_K, labels.counts, strict=True)]
    )
    for _ in range(tries):
        label_CK = _deal(single_K, double_K, clients, k, rng)
        client_S = rng.permutation(clients)[np.argsort(label_CK, axis=None, kind="stable") // k]
        least = int(np.bincount(client_S, sizes_S, minlength=clients).min())
        if least >= pool.minimum:
            break
    else:
        raise UserError(
            f"partition: pathological: in {tries} tries some client always had fewer "
            f"examples than the minimum of {pool.minimum} ({least} in the last); lower minimum "
            "or clients, or raise k"
        )
    order = rng.permutation(pool.examples)
    by_label = order[np.argsort(labels.label_I[order], kind="stable")]
    client_I = np.empty(pool.examples, np.int64)
    client_I[by_label] = np.repeat(client_S, sizes_S)
    return client_I


def _shards(labels: Labels, clients: int, k: int, column: str) -> tuple[np.ndarray, np.ndarray]:
    """How many shards each label is cut into, about in proportion to its examples.

    Returns:
      Those that go to a client each, and those beyond, where other labels have too few examples.
    """
    counts, shards = labels.counts, clients * k
    if shards < len(counts):
        raise UserError(
            f"partition: pathological: {clients} clients with {k} labels each cannot hold the "
            f"{len(counts)} labels of column {column!r}; raise clients or k"
        )
    if shards > counts.sum():
        raise UserError(
            f"partition: pathological: {counts.sum()} examples cannot be cut into {clients} x {k} "
            "shards; lower clients or k"
        )
    weight_K = counts.astype(float)
    most_K = np.minimum(counts, clients)
    single_K = 1 + _within(weight_K, shards - len(counts), most_K - 1)
    return single_K, _within(weight_K, shards - int(single_K.sum()), counts - single_K)


def _within(weight_K: np.ndarray, total: int, most_K: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to weights, none above its most; their sum may be less then."""
    free_K = most_K > 0
    found_K = np.zeros(len(weight_K), np.int64)
    while total > 0 and free_K.any():
        found_K[free_K] = apportion(weight_K[free_K], total)
        high_K = free_K & (found_K > most_K)
        if not high_K.any():
            break
        found_K[high_K] = most_K[high_K]
        total -= int(most_K[high_K].sum())
        free_K &= ~high_K
    return found_K


def _deal(
    single_K: np.ndarray, double_K: np.ndarray, clients: int, k: int, rng: np.random.Generator
) -> np.ndarray:
    """The labels of each client's shards: int64 [C, k]."""
    left_K = single_K.copy()
    label_CK = np.full((clients, k), -1)
    for c in range(clients):
        # First labels that all clients that are left must have, then by how much of them is left.
        with np.errstate(divide="ignore"):
            likely_K = np.log(left_K) + rng.gumbel(size=len(left_K))
        likely_K[left_K == clients - c] = np.inf
        drawn = np.argsort(-likely_K, kind="stable")[:k]
        drawn = drawn[left_K[drawn] > 0]
        left_K[drawn] -= 1
        label_CK[c, : len(drawn)] = drawn
    label_CK[label_CK < 0] = rng.permutation(np.repeat(np.arange(len(double_K)), double_K))
    return label_CK
