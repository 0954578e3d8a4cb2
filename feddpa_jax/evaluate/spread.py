"""How far a mean of scores may be off: variances, and intervals by Student's t.

A measure is a weighted mean of cells (client C, instance I of task K):

    value = sum over c, k of share_CK * (mean over the instances i of task k of score_CI)

P and TTP are such means (`evaluate/personalization.py`), and so are their differences between two
models on the same cells. Three variances of it have closed forms, so nothing is resampled:

    over instances   V_i = sum over k of var_k(sum over c of share_CK * score_CI) / n_k
    over clients     V_c = var(a client's own mean) / clients, of clients that count alike
    over all         V_c + V_i - V_b, with V_b = sum over c, k of share_CK^2 var_k(score_CI) / n_k

`var` divides by n - 1. V_b is in V_c and in V_i, so one is taken off: two-way clustering, A. C.
Cameron, J. B. Gelbach and D. L. Miller, "Robust Inference With Multiway Clustering", JBES 2011.

Where there are several seeds, V_c, V_i and V_b are of the means over seeds, and the variance
between the seeds' values, over their number, is added to V for "over all". Then

    interval = value -+ t(0.975, df) * sqrt(V),    df = V^2 / sum over parts v of (v^2 / df_v)

with F. E. Satterthwaite's degrees of freedom (Biometrics Bulletin 1946). Two repairs make it cover
where instances are few (`tests/evaluate/test_coverage.py` simulates it):

- Skewed scores, such as NLL: the end on the long side moves out by the skewness correction of
  N. J. Johnson, "Modified t Tests and Confidence Intervals for Asymmetrical Populations", JASA
  1978, standard error * skewness of the mean / 6 * (1 + 2 t^2). The other end stays where it is.
- Scores of a known span, such as exact match: if all of N answers agree, their variance is 0, and
  yet the next may differ. No end is nearer than 3 spans / N, the rule of three (J. A. Hanley and
  A. Lippman-Hand, "If Nothing Goes Wrong, Is Everything All Right?", JAMA 1983).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
# Degrees of freedom at which Student's t is the normal distribution.
MANY = 1e9


@dataclasses.dataclass(frozen=True)
class Spread:
    """Variance of a mean, with what Student's t and Johnson's correction need; arrays of one shape.

    Attributes:
      variance: of the mean.
      doubt: sum of (v^2 / degrees of freedom of v) over the independent parts v of the variance.
      third: third central moment of the mean.

    Example:
      ```
      below, above = Spread.of(part_I).reach()
      low, high = value - below, value + above
      ```
    """

    variance: np.ndarray
    doubt: np.ndarray
    third: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Of the mean of n independent draws, [..., n], n >= 2; no third moment for n = 2."""
        count = values.shape[-1]
        off = values - values.mean(axis=-1, keepdims=True)
        # What is only rounding is no variance.
        least = 1e-12 * np.abs(values).max(axis=-1, keepdims=True)
        off = np.where(np.abs(off) <= least, 0.0, off)
        square = off**2
        variance = square.sum(axis=-1) / (count - 1) / count
        third = np.zeros_like(variance)
        if count > 2:
            # The unbiased third moment is n / ((n - 1) (n - 2)) sum off^3, a mean's is it / n^2.
            third = (square * off).sum(axis=-1) / ((count - 1) * (count - 2) * count)
        return cls(variance, variance**2 / (count - 1), third)

    @classmethod
    def sum(cls, parts: Sequence["Spread"]) -> "Spread":
        """Of a sum of independent means."""
        return cls(
            np.sum([part.variance for part in parts], axis=0),
            np.sum([part.doubt for part in parts], axis=0),
            np.sum([part.third for part in parts], axis=0),
        )

    def scaled(self, factor: float) -> "Spread":
        """Of the mean times a number."""
        return Spread(factor**2 * self.variance, factor**4 * self.doubt, factor**3 * self.third)

    def freedom(self) -> np.ndarray:
        """Satterthwaite's degrees of freedom; `MANY` where there is no variance."""
        known = self.doubt > 0
        return np.where(known, self.variance**2 / np.where(known, self.doubt, 1.0), MANY)

    def reach(self, least: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """How far the 95 % interval reaches below and above the value, both >= 0.

        Args:
          least: no end is nearer than this.
        """
        t = stdtrit(self.freedom(), (1 + CONFIDENCE) / 2)
        half = t * np.sqrt(self.variance)
        known = self.variance > 0
        # Standard error times skewness.
        skew = np.where(known, self.third / np.where(known, self.variance, 1.0), 0.0)
        moved = skew / 6 * (1 + 2 * t**2)
        return (
            np.maximum(half + np.maximum(-moved, 0.0), least),
            np.maximum(half + np.maximum(moved, 0.0), least),
        )


def over_both(clients: Spread, instances: Spread, cells: np.ndarray) -> Spread:
    """Of two-way clustering: clients + instances - both, and no less than either.

    Args:
      clients: over clients, instances fixed.
      instances: over instances, clients fixed.
      cells: V_b, which both have.
    """
    rest = np.maximum(instances.variance - cells, instances.variance - clients.variance)
    known = instances.variance > 0
    # What is taken off the instances' variance leaves its relative doubt as it was.
    kept = np.where(known, np.maximum(rest, 0) / np.where(known, instances.variance, 1.0), 0.0)
    return Spread(
        clients.variance + kept * instances.variance,
        clients.doubt + kept**2 * instances.doubt,
        clients.third + kept * instances.third,
    )
