"""P and TTP over several seeds, with the intervals of an evaluation and one over seeds.

For the value v_s of each of n seeds, of which each is P or TTP (or a difference of them):

    value      = mean over s of v_s
    over seeds = value +- t(0.975, n - 1) * sd(v_s) / sqrt(n), for n >= 2: instances and clients are
                 fixed

`evaluate/estimating.py` has the intervals over instances, over clients and over all.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from feddpa_jax.comparison.finished import Scores
from feddpa_jax.evaluate.estimating import Sample, estimate
from feddpa_jax.evaluate.interval import Estimate, Interval
from feddpa_jax.evaluate.personalization import shares

MEASURES = ("P", "TTP")


@dataclasses.dataclass(frozen=True)
class SeedsEstimate(Estimate):
    """A mean over seeds, and its intervals.

    Attributes:
      over_seeds: had other seeds been drawn, with these clients and instances; None with one seed.
      by_seed: the value of each seed.
    """

    over_seeds: Interval | None
    by_seed: tuple[float, ...]

    def half(self) -> float | None:
        """Half of the interval over seeds; None with one seed, and where there is no value."""
        if self.over_seeds is None or not self.over_seeds.known:
            return None
        return self.over_seeds.high - self.over_seeds.value

    def text(self, digits: int) -> str:
        """The value, its intervals over instances and clients, and half of that over seeds."""
        half = self.half()
        return super().text(digits) + ("" if half is None else f" ± {half:.{digits}f}")


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
    return Interval(mean, mean - half, mean + half, count - 1)


def estimate_seeds(
    scores: Sequence[np.ndarray],
    asked: Sequence[Scores],
    *,
    span: float | None = None,
    paired: bool = False,
) -> dict[str, SeedsEstimate]:
    """P and TTP.

    Args:
      scores: of each seed, [C, I]; or differences of scores.
      asked: the clients and instances that they are of; seeds may ask the same instances, or each
        its own.
      span: scores are from 0 to this; None if nothing is known.
      paired: whether they are differences.

    Returns:
      By measure, "P" and "TTP".
    """
    groups: dict[tuple, list[int]] = {}
    for place, own in enumerate(asked):
        groups.setdefault(own.questions, []).append(place)
    samples = [
        Sample([scores[place] for place in places], asked[places[0]].tasks)
        for places in groups.values()
    ]
    found = {}
    for measure in MEASURES:
        share_GCK = [shares(sample.tasks.own_CK)[measure] for sample in samples]
        whole = estimate(samples, share_GCK, span=span, paired=paired)
        values = tuple(
            Sample([own_CI], own.tasks).value(shares(own.tasks.own_CK)[measure])
            if whole.known
            else math.nan
            for own_CI, own in zip(scores, asked, strict=True)
        )
        found[measure] = SeedsEstimate(
            whole.over_instances, whole.over_clients, whole.over_all, t_interval(values), values
        )
    return found
