"""From scores of answers to P, TTP and their bootstrap intervals.

For scores of C clients on I test instances, each of one task:

    P   = mean over clients of the mean over the client's own tasks of its score on the task
    TTP = mean over clients of the mean over all tasks (own ones included) of its score on the task
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import chex
import numpy as np

# Bytes of resamples that are kept, and of what is made of them at once: 256 MB together.
BOUND = 128 * 2**20


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval; NaN where there is no value.

    >>> Interval(0.5, 0.25, 0.75).text(2)
    '0.50 [0.25, 0.75]'
    """

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is a value: no client may have an own task in the tests."""
        return not math.isnan(self.value)

    def text(self, digits: int) -> str:
        """The value and its interval in brackets, with so many digits after the point."""
        if not self.known:
            return "–"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def to_json(self) -> dict[str, float | None]:
        """By name; null, not NaN, which is no JSON, where there is no value."""
        parts = dataclasses.asdict(self)
        return {name: None if math.isnan(part) else part for name, part in parts.items()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Interval":
        """From what `to_json` gives.

        Raises:
          LookupError, TypeError, ValueError: it is something else.
        """
        parts = [found[name] for name in ("value", "low", "high")]
        return cls(*(math.nan if part is None else float(part) for part in parts))


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


def personalization(matrix: np.ndarray, own_CK: np.ndarray) -> np.ndarray:
    """P from client-by-task means [..., C, K], of clients with an own task in the tests."""
    has_C = own_CK.any(axis=1)
    if not has_C.any():
        return np.full(matrix.shape[:-2], np.nan)
    own_CK = own_CK[has_C].astype(float)
    own = (matrix[..., has_C, :] * own_CK).sum(axis=-1) / own_CK.sum(axis=-1)
    return own.mean(axis=-1)


def test_time_personalization(matrix: np.ndarray) -> np.ndarray:
    """TTP from client-by-task means [..., C, K]."""
    return matrix.mean(axis=(-2, -1))


@dataclasses.dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of the test instances, within each task, the same for all clients.

    Attributes:
      tasks: whose instances were drawn.
      count: S, how many resamples there are.
      states: of the random generator before each task's draws.
      weight_SI: how often resample S drew instance I, over the size of the instance's task; no
        rows where that would take more than `BOUND` bytes: then it is drawn again with every use.
    """

    tasks: Tasks
    count: int
    states: tuple[Mapping[str, Any], ...]
    weight_SI: np.ndarray

    @classmethod
    def draw(cls, tasks: Tasks, count: int, seed: int) -> "Resamples":
        """Draws `count` resamples."""
        rng = np.random.default_rng([seed, 4])
        kept = 8 * count * len(tasks.task_I) <= BOUND
        weight_SI = np.zeros((count if kept else 0, len(tasks.task_I)))
        states = []
        for members_I in tasks.members():
            states.append(rng.bit_generator.state)
            rows = max(1, BOUND // 8 // len(members_I))
            for start in range(0, count, rows):
                drawn_SI = _draw(rng, len(members_I), min(rows, count - start))
                if kept:
                    weight_SI[start : start + rows, members_I] = drawn_SI
        return cls(tasks, count, tuple(states), weight_SI)

    @property
    def kept(self) -> bool:
        """Whether all weights are in memory."""
        return len(self.weight_SI) == self.count

    def chunks(self) -> Iterator[np.ndarray]:
        """The weights of all resamples, [S, I], chunk by chunk."""
        if self.kept:
            yield self.weight_SI
            return
        instances = len(self.tasks.task_I)
        rows = max(1, BOUND // 2 // 8 // instances)
        generators = [_restored(state) for state in self.states]
        for start in range(0, self.count, rows):
            weight_SI = np.empty((min(rows, self.count - start), instances))
            for rng, members_I in zip(generators, self.tasks.members(), strict=True):
                weight_SI[:, members_I] = _draw(rng, len(members_I), len(weight_SI))
            yield weight_SI

    def sums(self, *values_I: np.ndarray) -> list[np.ndarray]:
        """The weighted sum of each of some values of instances in every resample, [S]."""
        parts = [[weight_SI @ value_I for value_I in values_I] for weight_SI in self.chunks()]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def matrices(self, scores_CI: np.ndarray) -> np.ndarray:
        """Client-by-task means of every resample, [S, C, K]; for weights that are kept."""
        assert self.kept
        by_task = []
        for k in range(len(self.tasks.names)):
            members = self.tasks.task_I == k
            by_task.append(self.weight_SI[:, members] @ scores_CI[:, members].T)
        return np.stack(by_task, axis=-1)


def _draw(rng: np.random.Generator, members: int, count: int) -> np.ndarray:
    """`count` resamples of as many instances: the share of each, [S, I]."""
    return rng.multinomial(members, np.full(members, 1 / members), count) / members


def _restored(state: Mapping[str, Any]) -> np.random.Generator:
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    return rng


@dataclasses.dataclass(frozen=True)
class Summary:
    """P, TTP and the client-by-task means of one mode in one metric.

    Attributes:
      p: personalization.
      ttp: test-time personalization.
      matrix_CK: client-by-task means.
      p_clients: how many clients P is a mean over; those without an own task in the tests are
        left out.

    Example:
      ```
      summary = run.evaluate()["exact_match"]["instance"]
      print(summary.p.value, summary.ttp.low, summary.matrix_CK.shape)
      ```
    """

    p: Interval
    ttp: Interval
    matrix_CK: np.ndarray
    p_clients: int


def _parts(scores_CI: np.ndarray, tasks: Tasks) -> tuple[np.ndarray, np.ndarray]:
    """What each instance adds to P and to TTP, [I]: both are sums over a resample's instances."""
    clients = int(tasks.own_CK.any(axis=1).sum())
    if not clients:
        return np.full(len(tasks.task_I), np.nan), scores_CI.mean(axis=0) / len(tasks.names)
    part_I = np.zeros(len(tasks.task_I))
    for own_K, score_I in zip(tasks.own_CK, scores_CI, strict=True):
        if own_K.any():
            part_I += own_K[tasks.task_I] * score_I / own_K.sum()
    return part_I / clients, scores_CI.mean(axis=0) / len(tasks.names)


def resampled(
    scores_CI: np.ndarray, tasks: Tasks, resamples: Resamples
) -> tuple[np.ndarray, np.ndarray]:
    """P and TTP of one mode's scores in every resample, each [S]."""
    # The matrices of all resamples, and what is made of them, take three times this.
    matrix = scores_CI.shape[0] * len(tasks.names)
    if resamples.kept and 3 * 8 * resamples.count * matrix <= BOUND:
        resampled_SCK = resamples.matrices(scores_CI)
        return (
            personalization(resampled_SCK, tasks.own_CK),
            test_time_personalization(resampled_SCK),
        )
    p_S, ttp_S = resamples.sums(*_parts(scores_CI, tasks))
    return p_S, ttp_S


def interval_of(value: float, samples_S: np.ndarray) -> Interval:
    """A value with the 95 % interval of its resamples."""
    low, high = np.percentile(samples_S, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def summarize(scores_CI: np.ndarray, tasks: Tasks, resamples: Resamples) -> Summary:
    """P, TTP and the matrix of one mode's scores; of a difference of scores just as well."""
    chex.assert_tree_all_finite(scores_CI)
    matrix_CK = task_matrix(scores_CI, tasks)
    p_S, ttp_S = resampled(scores_CI, tasks, resamples)
    return Summary(
        interval_of(float(personalization(matrix_CK, tasks.own_CK)), p_S),
        interval_of(float(test_time_personalization(matrix_CK)), ttp_S),
        matrix_CK,
        int(tasks.own_CK.any(axis=1).sum()),
    )
