"""How weights tell a client's own instances from foreign ones."""

from typing import Any, NamedTuple

import numpy as np


class Separation(NamedTuple):
    """What local weights do on own and on foreign instances.

    Attributes:
      own: mean weight of own instances over clients; None where there are none.
      foreign: of foreign ones.
      auc: the chance that an own instance of a client has a larger weight than a foreign one, ties
        counted half (the area under the ROC curve), mean over clients; None where none has both.
    """

    own: float | None
    foreign: float | None
    auc: float | None

    def to_json(self) -> dict[str, Any]:
        """For summary.json."""
        return self._asdict()

    def cells(self) -> list[str]:
        """As columns of a table show them."""
        return ["–" if value is None else f"{value:.2f}" for value in self]


def separate(weight_CI: np.ndarray, own_CI: np.ndarray) -> Separation:
    """How weights differ between own and foreign instances.

    Args:
      weight_CI: each client's local weight of each instance; by layer, [C, I, L], of which the mean
        counts.
      own_CI: whether an instance is of a client's own task.

    >>> own = np.array([[True, True, False, False]])
    >>> separate(np.array([[0.5, 0.3, 0.3, 0.1]]), own).cells()
    ['0.40', '0.20', '0.88']
    """
    weight_CI = weight_CI.reshape(*own_CI.shape, -1).mean(axis=-1)
    own_C = _means(weight_CI, own_CI)
    foreign_C = _means(weight_CI, ~own_CI)
    areas = [
        _area(weight_I[own_I], weight_I[~own_I])
        for weight_I, own_I in zip(weight_CI, own_CI, strict=True)
        if own_I.any() and not own_I.all()
    ]
    return Separation(*(float(np.mean(v)) if len(v) else None for v in (own_C, foreign_C, areas)))


def _means(weight_CI: np.ndarray, counts_CI: np.ndarray) -> list[float]:
    """Each client's mean weight of the instances that count, of those that have any."""
    rows = zip(weight_CI, counts_CI, strict=True)
    return [float(weight_I[counts_I].mean()) for weight_I, counts_I in rows if counts_I.any()]


def _area(own_N: np.ndarray, foreign_M: np.ndarray) -> float:
    """The share of pairs in which the own weight is larger, ties counted half."""
    sorted_M = np.sort(foreign_M)
    below, reached = (np.searchsorted(sorted_M, own_N, side=side) for side in ("left", "right"))
    return float((below + reached).mean() / 2 / len(sorted_M))
