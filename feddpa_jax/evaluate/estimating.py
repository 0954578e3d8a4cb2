"""Estimates of P and TTP from scores of answers: values with their intervals.

`evaluate/spread.py` has the formulas, and how small numbers are treated. Fewer instances, clients
or seeds than stated here give no interval of that kind. With fewer instances or seeds a nominal
95 % covered less than 92 % in simulations; three clients say too little of how clients differ.
"""

import dataclasses
import functools
from collections.abc import Sequence

import chex
import numpy as np

from feddpa_jax.evaluate.interval import Estimate, Interval
from feddpa_jax.evaluate.personalization import Tasks, shares, task_matrix
from feddpa_jax.evaluate.spread import Spread, over_both
from feddpa_jax.short_repr import short_repr

# Of each task that counts, and of all of them together.
MIN_PER_TASK, MIN_INSTANCES = 4, 20
MIN_CLIENTS = 4
# With fewer, seeds are held fixed in "over all".
MIN_SEEDS = 3
# Bytes of scores that are worked on at once.
BLOCK = 16 * 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Scores of one or several seeds' models on the same instances, by the same clients.

    Attributes:
      scores_SCI: [C, I] of each seed; of a paired difference just as well.
      tasks: of the instances.
    """

    scores_SCI: Sequence[np.ndarray]
    tasks: Tasks

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """Means over the seeds, [C, I]."""
        if len(self.scores_SCI) == 1:
            return self.scores_SCI[0]
        return np.mean(self.scores_SCI, axis=0)

    @functools.cached_property
    def matrix(self) -> np.ndarray:
        """Client-by-task means of `mean`, [C, K]."""
        return task_matrix(self.mean, self.tasks)

    @functools.cached_property
    def variances(self) -> np.ndarray:
        """The variance of each of `matrix`, [C, K]; for tasks of two instances and more."""
        size_K = self.tasks.sizes()
        members = self.tasks.members()
        order_I = np.concatenate(members)
        starts_K = np.cumsum([0, *map(len, members[:-1])])
        square_CK = np.empty(self.matrix.shape)
        for rows in self._blocks():
            off_CI = self.mean[rows] - self.matrix[rows][:, self.tasks.task_I]
            square_CK[rows] = np.add.reduceat((off_CI**2)[:, order_I], starts_K, axis=1)
        return square_CK / np.maximum(size_K - 1, 1) / size_K

    def parts(self, share_CK: np.ndarray) -> np.ndarray:
        """What each instance gives to a measure, float [I]: the sum over tasks of their means."""
        part_I = np.zeros(len(self.tasks.task_I))
        for rows in self._blocks():
            share_CI = share_CK[rows][:, self.tasks.task_I]
            part_I += np.einsum("ci,ci->i", share_CI, self.mean[rows])
        return part_I

    def value(self, share_CK: np.ndarray) -> float:
        """The measure itself."""
        return float((self.matrix * share_CK).sum())

    def count(self, share_CK: np.ndarray) -> float:
        """How many instances of equal shares are worth as much: 1 / (sum of squared shares)."""
        share_K = share_CK.sum(axis=0)
        return 1 / float((share_K**2 / self.tasks.sizes()).sum())

    def _blocks(self) -> list[slice]:
        """Clients, so many at once that their scores take little memory."""
        rows = max(1, BLOCK // 8 // len(self.tasks.task_I))
        return [slice(start, start + rows) for start in range(0, len(self.mean), rows)]


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
      print(summary.p.value, summary.ttp.over_clients.low, summary.matrix_CK.shape)
      ```
    """

    p: Estimate
    ttp: Estimate
    matrix_CK: np.ndarray
    p_clients: int

    def __repr__(self) -> str:
        """In a few lines; see `short_repr`."""
        clients, tasks = self.matrix_CK.shape
        p, ttp = (
            f"{one.value:.4g} {one.over_instances.brackets(3)}" if one.known else "–"
            for one in (self.p, self.ttp)
        )
        return short_repr(self, f"P {p}, TTP {ttp}", clients=clients, tasks=tasks)


def summarize(
    scores_CI: np.ndarray, tasks: Tasks, *, span: float | None = None, paired: bool = False
) -> Summary:
    """P, TTP and the matrix of one mode's scores.

    Args:
      scores_CI: of C clients on I instances; or differences of them, between two models.
      tasks: of the instances.
      span: scores are from 0 to this; None if nothing is known.
      paired: whether they are differences.
    """
    chex.assert_tree_all_finite(scores_CI)
    sample = Sample([scores_CI], tasks)
    found = {
        name: estimate([sample], [share_CK], span=span, paired=paired)
        for name, share_CK in shares(tasks.own_CK).items()
    }
    return Summary(
        found["P"],
        found["TTP"],
        sample.matrix,
        int(tasks.own_CK.any(axis=1).sum()),
    )


def estimate(
    samples: Sequence[Sample],
    share_GCK: Sequence[np.ndarray],
    *,
    span: float | None = None,
    paired: bool = False,
) -> Estimate:
    """A weighted mean of client-by-task means, over all seeds, with its intervals.

    Args:
      samples: each of the seeds that share instances.
      share_GCK: what each client's mean on each task counts, [C, K], for each sample; together 1.
      span: scores are from 0 to this; None if nothing is known.
      paired: whether the scores are differences of two models' scores.

    Returns:
      No value where nothing counts.
    """
    if not all(share_CK.any() for share_CK in share_GCK):
        return Estimate.none(np.nan, "no client has an own task in the tests")
    pairs = list(zip(samples, share_GCK, strict=True))
    seeds = sum(len(sample.scores_SCI) for sample in samples)
    part_G = [len(sample.scores_SCI) / seeds for sample in samples]
    value = float(np.dot(part_G, [sample.value(share_CK) for sample, share_CK in pairs]))
    few = next(filter(None, (_few_instances(own.tasks, share) for own, share in pairs)), "")
    few_clients = _few_clients(share_GCK)
    instances = clients = whole = None
    floor = 0.0
    if not few:
        spreads = [_instances(*pair).scaled(part) for part, pair in zip(part_G, pairs, strict=True)]
        instances = Spread.sum(spreads)
        if span is not None:
            floor = 3 * span / sum(own.count(share_CK) for own, share_CK in pairs)
    if not few_clients:
        off_G = [_clients(own.matrix, share_CK) for own, share_CK in pairs]
        clients = Spread.of(np.tensordot(part_G, off_G, axes=1))
    if instances is not None and clients is not None:
        both = [(share_CK**2 * own.variances).sum() for own, share_CK in pairs]
        whole = over_both(clients, instances, np.dot(np.square(part_G), both))
        if seeds >= MIN_SEEDS:
            whole = Spread.sum([whole, _between(pairs)])
    alike = "all test instances have the same score"
    spans = (
        _interval(value, instances, few or alike, floor),
        _interval(value, clients, few_clients or "all clients have the same value", 0.0),
        _interval(value, whole, few or few_clients or alike, floor),
    )
    if span is None:
        return Estimate(*spans)
    return Estimate(*(_within(one, -span if paired else 0.0, span) for one in spans))


def _interval(value: float, found: Spread | None, why: str, least: float) -> Interval:
    """The interval of a spread; none, and why, without one and where nothing varies."""
    if found is None or not (found.variance or least):
        return Interval.none(value, why)
    below, above = found.reach(least)
    return Interval(value, value - float(below), value + float(above), float(found.freedom()))


def _within(found: Interval, low: float, high: float) -> Interval:
    """An interval cut to what values can be."""
    low, high = min(max(found.low, low), found.value), max(min(found.high, high), found.value)
    return dataclasses.replace(found, low=low, high=high) if found.bounded else found


def _few_instances(tasks: Tasks, share_CK: np.ndarray) -> str:
    """Why there are too few instances; empty if there are enough."""
    used_K = share_CK.any(axis=0)
    size_K = np.where(used_K, tasks.sizes(), np.inf)
    least = int(size_K.argmin())
    if size_K[least] < MIN_PER_TASK:
        count = int(size_K[least])
        return f"{_counted(count, tasks.names[least])}, {MIN_PER_TASK} of each task are needed"
    total = int(size_K[used_K].sum())
    if total < MIN_INSTANCES:
        return f"{total} test instances count, {MIN_INSTANCES} are needed"
    return ""


def _counted(count: int, task: str) -> str:
    return f"{count} test instance{'' if count == 1 else 's'} of task {task}"


def _few_clients(share_GCK: Sequence[np.ndarray]) -> str:
    """Why there are too few clients; empty if there are enough."""
    counts_GC = [share_CK.any(axis=1) for share_CK in share_GCK]
    if any(not np.array_equal(counts_C, counts_GC[0]) for counts_C in counts_GC):
        return "clients differ between seeds"
    count = int(counts_GC[0].sum())
    return f"{count} clients count, {MIN_CLIENTS} are needed" if count < MIN_CLIENTS else ""


def _instances(sample: Sample, share_CK: np.ndarray) -> Spread:
    """The spread over instances, clients fixed."""
    part_I, used_K = sample.parts(share_CK), np.flatnonzero(share_CK.any(axis=0))
    members = sample.tasks.members()
    return Spread.sum([Spread.of(part_I[members[k]]) for k in used_K])


def _clients(matrix_CK: np.ndarray, share_CK: np.ndarray) -> np.ndarray:
    """Of each client that counts, [c]: what the mean of these is, with its spread, is the value."""
    share_C = share_CK.sum(axis=1)
    counts_C = share_C > 0
    part_C = (matrix_CK * share_CK).sum(axis=1)[counts_C]
    value = part_C.sum()
    return value + counts_C.sum() * (part_C - share_C[counts_C] * value)


def _between(samples: Sequence[tuple[Sample, np.ndarray]]) -> Spread:
    """The spread between seeds, each with the clients and instances that it has."""
    values_S = [
        Sample([scores_CI], sample.tasks).value(share_CK)
        for sample, share_CK in samples
        for scores_CI in sample.scores_SCI
    ]
    found = Spread.of(np.array(values_S))
    # Three or five values tell nothing about skewness.
    return dataclasses.replace(found, third=np.zeros_like(found.third))
