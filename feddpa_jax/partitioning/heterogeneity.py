"""How unlike the clients of a partition are: labels of each, and distances to the whole."""

import dataclasses

import numpy as np

from feddpa_jax.partitioning.pool import Labels


@dataclasses.dataclass(frozen=True)
class Spread:
    """Numbers of all clients in short: minimum, median and maximum."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, number_C: np.ndarray) -> "Spread":
        """Args: a number of each client."""
        return cls(float(number_C.min()), float(np.median(number_C)), float(number_C.max()))


@dataclasses.dataclass(frozen=True)
class PartitionStatistics:
    """What a partition made of the data.

    Attributes:
      clients: how many there are.
      examples: training examples of all clients.
      tests: test instances of all clients.
      left_out: examples of no client.
      sizes: training examples of a client.
      column: of the labels; None if there is none, and then the others are None too.
      labels: how many labels there are.
      own_labels: labels that a client has.
      distance: mean over clients of the total variation distance between the client's labels and
        those of all examples that belong to a client: 0 if they are alike, near 1 if the client has
        one rare label.
      distance_by_chance: the same where the same examples are dealt out at random to clients of the
        same sizes: what clients of few examples differ by anyway.
    """

    clients: int
    examples: int
    tests: int
    left_out: int
    sizes: Spread
    column: str | None = None
    labels: int | None = None
    own_labels: Spread | None = None
    distance: float | None = None
    distance_by_chance: float | None = None


def pair_counts(client_I: np.ndarray, labels: Labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of a client and a label that have examples.

    Args:
      client_I: each example's client, below 0 for none.
      labels: of the same examples.

    Returns:
      client_P, label_P and count_P, sorted by client and label: int64.
    """
    labels_known = len(labels.names)
    own = client_I >= 0
    pair_I = client_I[own] * labels_known + labels.label_I[own]
    pair_P, count_P = np.unique(pair_I, return_counts=True)
    return pair_P // labels_known, pair_P % labels_known, count_P


def distances(client_I: np.ndarray, labels: Labels, clients: int) -> np.ndarray:
    """Each client's total variation distance to all clients together: float64 [C].

    That is half the sum over labels of |q_ck - p_k|, or the sum of q_ck - p_k where it is positive.
    Client c's examples have label k in the part q_ck, and all examples in the part p_k.

    >>> labels = Labels(("a", "b"), np.array([0, 0, 1, 1]))
    >>> distances(np.array([0, 0, 1, 1]), labels, 2), distances(np.array([0, 1, 0, 1]), labels, 2)
    (array([0.5, 0.5]), array([0., 0.]))
    """
    client_P, label_P, count_P = pair_counts(client_I, labels)
    size_C = np.bincount(client_P, count_P, minlength=clients)
    count_K = np.bincount(label_P, count_P, minlength=len(labels.names))
    part_K = count_K / count_K.sum()
    above_P = np.maximum(count_P / size_C[client_P] - part_K[label_P], 0)
    return np.bincount(client_P, above_P, minlength=clients)


def describe_partition(
    client_I: np.ndarray,
    test_I: np.ndarray,
    clients: int,
    column: str | None,
    labels: Labels | None,
    rng: np.random.Generator,
) -> PartitionStatistics:
    """The statistics of a partition.

    Args:
      client_I: each example's client, below 0 for none.
      test_I: whether it is a test instance.
      clients: how many there are.
      column: of the labels, if there are any.
      labels: of the examples.
      rng: of the examples that are dealt out at random for comparison.
    """
    own, train = client_I >= 0, (client_I >= 0) & ~test_I
    found = PartitionStatistics(
        clients=clients,
        examples=int(train.sum()),
        tests=int((own & test_I).sum()),
        left_out=int((~own).sum()),
        sizes=Spread.of(np.bincount(client_I[train], minlength=clients)),
    )
    if labels is None:
        return found
    mixed_I = client_I.copy()
    mixed_I[own] = rng.permutation(client_I[own])
    return dataclasses.replace(
        found,
        column=column,
        labels=len(labels.names),
        own_labels=Spread.of(np.bincount(pair_counts(client_I, labels)[0], minlength=clients)),
        distance=float(distances(client_I, labels, clients).mean()),
        distance_by_chance=float(distances(mixed_I, labels, clients).mean()),
    )
