"""Scores by task: where a difference in P or TTP comes from."""

from typing import NamedTuple

import numpy as np

from feddpa_jax.evaluate.personalization import Tasks


class TaskScore(NamedTuple):
    """A mode's scores on one task.

    Attributes:
      own: the mean over clients that train on it; None if none does.
      everyone: the mean over all clients.
      most_common: what the task's most common training answer scores; None by a metric that does
        not compare texts.
    """

    own: float | None
    everyone: float
    most_common: float | None = None


def task_scores(
    matrix_CK: np.ndarray, tasks: Tasks, constant_CK: np.ndarray | None = None
) -> dict[str, TaskScore]:
    """Each task's scores.

    Args:
      matrix_CK: client-by-task means.
      tasks: which are whose.
      constant_CK: those of the most common answers.

    >>> tasks = Tasks(("a", "b"), np.array([0, 1]), np.array([[True, False], [True, False]]))
    >>> task_scores(np.array([[1.0, 4.0], [3.0, 6.0]]), tasks)["a"].own
    2.0
    """
    found = {}
    for k, name in enumerate(tasks.names):
        own_C = tasks.own_CK[:, k]
        found[name] = TaskScore(
            float(matrix_CK[own_C, k].mean()) if own_C.any() else None,
            float(matrix_CK[:, k].mean()),
            None if constant_CK is None else float(constant_CK[0, k]),
        )
    return found
