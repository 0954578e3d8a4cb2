"""From scores of answers to P and TTP (`evaluate/estimating.py` has their intervals).

For scores of C clients on I test instances, each of one task:

    P   = mean over clients of the mean over the client's own tasks of its score on the task
    TTP = mean over clients of the mean over all tasks (own ones included) of its score on the task
"""

import dataclasses

import chex
import numpy as np

# Bytes that a matrix of instances by tasks may take.
BOUND = 128 * 2**20


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Which task each instance has, and which tasks are each client's own.

    Attributes:
      names: the tasks K that test instances have.
      task_I: index of each instance's task.
      own_CK: whether a client trains on a task.
    """

    names: tuple[str, ...]
    task_I: np.ndarray
    own_CK: np.ndarray

    def __post_init__(self) -> None:
        """Every task has an instance: a mean over none would be NaN."""
        assert set(self.task_I.tolist()) == set(range(len(self.names))), "a task has no instance"
        chex.assert_shape(self.own_CK, (None, len(self.names)))

    def one_hot(self) -> np.ndarray:
        """Float [I, K]."""
        return np.eye(len(self.names))[self.task_I]

    def sizes(self) -> np.ndarray:
        """How many instances each task has, float [K]."""
        return np.bincount(self.task_I, minlength=len(self.names)).astype(float)

    def members(self) -> list[np.ndarray]:
        """The instances of each task, ascending."""
        ends_K = np.cumsum(self.sizes().astype(int))[:-1]
        return np.split(np.argsort(self.task_I, kind="stable"), ends_K)


def task_matrix(scores_CI: np.ndarray, tasks: Tasks) -> np.ndarray:
    """Mean score of every client on every task, [C, K]."""
    if 8 * len(tasks.task_I) * len(tasks.names) > BOUND:
        return np.stack([scores_CI[:, own_I].mean(axis=1) for own_I in tasks.members()], axis=1)
    one_hot_IK = tasks.one_hot()
    return scores_CI @ one_hot_IK / one_hot_IK.sum(axis=0)


def shares(own_CK: np.ndarray) -> dict[str, np.ndarray]:
    """What a client's mean on a task counts in "P" and in "TTP", each [C, K]; together 1.

    All 0 in "P" where no client has an own task in the tests.
    """
    count_C = own_CK.sum(axis=1, keepdims=True)
    clients = max(int(own_CK.any(axis=1).sum()), 1)
    return {
        "P": own_CK / np.maximum(count_C, 1) / clients,
        "TTP": np.full(own_CK.shape, 1 / own_CK.size),
    }
