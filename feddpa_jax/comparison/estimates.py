"""P and TTP over several seeds, with two kinds of 95 % intervals.

For the value v_s of each of n seeds, of which each is P or TTP (or a difference of them):

    value          = mean over s of v_s
    over instances = bootstrap interval of the value: test instances are resampled, seeds are fixed
    over seeds     = value +- t(0.975, n - 1) * sd(v_s) / sqrt(n), for n >= 2: instances are fixed
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from feddpa_jax.comparison.finished import Scores
from feddpa_jax.evaluate.personalization import (
    Interval,
    Resamples,
    interval_of,
    personalization,
    resampled,
    task_matrix,
    test_time_personalization,
)

MEASURES = ("P", "TTP")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and its intervals.

    Attributes:
      over_instances: the value and its bootstrap interval over test instances.
      over_seeds: the value and its t-interval over seeds; None with one seed.
      by_seed: the value of each seed.
    """

    over_instances: Interval
    over_seeds: Interval | None
    by_seed: tuple[float, ...]

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return self.over_instances.value

    def text(self, digits: int) -> str:
        """The value, its interval over instances, and half the interval over seeds.

        >>> Estimate(Interval(2.0, 1.5, 2.5), Interval(2.0, 1.75, 2.25), (1.9, 2.1)).text(2)
        '2.00 [1.50, 2.50] ± 0.25'
        """
        text = self.over_instances.text(digits)
        if self.over_seeds is None or not self.over_seeds.known:
            return text
        return f"{text} ± {self.over_seeds.high - self.over_seeds.value:.{digits}f}"


def t_interval(values: Sequence[float]) -> Interval | None:
    """The mean of some values and its 95 % interval by Student's t; None of a single one.

    >>> t_interval([1.0, 3.0]).text(2)
    '2.00 [-10.71, 14.71]'
    """
    count = len(values)
    if count < 2:
        return None
    mean = float(np.mean(values))
    half = float(stdtrit(count - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


class Estimator:
    """Estimates whose resamples are shared, so that all methods are judged on the same draws."""

    def __init__(self, count: int):
        """Args: the number of bootstrap resamples."""
        self._count = count
        self._drawn: dict[tuple, Resamples] = {}

    def _resamples(self, asked: Scores, seed: int) -> Resamples:
        key = (seed, asked.questions)
        if key not in self._drawn:
            self._drawn[key] = Resamples.draw(asked.tasks, self._count, seed)
        return self._drawn[key]

    def __call__(
        self, scores: Sequence[np.ndarray], asked: Sequence[Scores], seeds: Sequence[int]
    ) -> dict[str, Estimate]:
        """P and TTP.

        Seeds that ask the same instances share each resample. Where the instances depend on the
        seed, each seed's own are resampled.

        Args:
          scores: of each seed, [C, I]; or differences of scores.
          asked: the clients and instances that they are of.
          seeds: of the runs.

        Returns:
          By measure, "P" and "TTP".
        """
        groups: dict[tuple, list[int]] = {}
        for place, own in enumerate(asked):
            groups.setdefault(own.questions, []).append(place)
        samples = {measure: np.zeros(self._count) for measure in MEASURES}
        for places in groups.values():
            first = places[0]
            mean_CI = scores[first]
            if len(places) > 1:
                mean_CI = np.mean([scores[place] for place in places], axis=0)
            drawn = self._resamples(asked[first], seeds[first])
            share = len(places) / len(asked)
            found = resampled(mean_CI, asked[first].tasks, drawn)
            for measure, samples_S in zip(MEASURES, found, strict=True):
                samples[measure] = samples[measure] + share * samples_S
        values = self._values(scores, asked)
        return {
            measure: Estimate(
                interval_of(float(np.mean(values[measure])), samples[measure]),
                t_interval(values[measure]),
                tuple(values[measure]),
            )
            for measure in MEASURES
        }

    @staticmethod
    def _values(
        scores: Sequence[np.ndarray], asked: Sequence[Scores]
    ) -> Mapping[str, Sequence[float]]:
        matrices = [
            task_matrix(own_CI, own.tasks) for own_CI, own in zip(scores, asked, strict=True)
        ]
        return {
            "P": [
                float(personalization(matrix_CK, own.tasks.own_CK))
                for matrix_CK, own in zip(matrices, asked, strict=True)
            ],
            "TTP": [float(test_time_personalization(matrix_CK)) for matrix_CK in matrices],
        }
