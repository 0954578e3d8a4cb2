"""What a rule gives up: on P against the best constant mix, on TTP against the global adapter.

A rule is worth its work if it has the P of the best constant mix of both adapters and the TTP of
the global adapter, both at once. So its answers are set against those of two references, one by
one on the test instances:

    P   minus the P of the constant mix that is best at P on what settings are chosen on
    TTP minus the TTP of the global adapter alone

The references' scores are those of the nine computed weights: nothing of them is interpolated.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.evaluate.estimating import Sample, estimate
from feddpa_jax.evaluate.interval import Estimate
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.evaluate.personalization import shares
from feddpa_jax.laboratory.candidates import places
from feddpa_jax.laboratory.choosing import Choosing
from feddpa_jax.laboratory.collect import WEIGHTS, Collected
from feddpa_jax.laboratory.findings import GivenUp, Split
from feddpa_jax.laboratory.grid import CURVE_METRICS, curves_of, make_curves


class References(NamedTuple):
    """The local weights of the two constant mixes that rules are set against.

    Attributes:
      P: of the mix that is best at P where settings are chosen.
      TTP: of the global adapter alone.

    >>> References(0.375).words()["P"]
    'the constant mix 0.375 to local'
    """

    P: float
    TTP: float = 0.0

    def words(self) -> dict[str, str]:
        """Each reference by measure, as headings name it."""
        return {"P": f"the constant mix {self.P:g} to local", "TTP": "the global adapter alone"}

    def to_json(self) -> dict[str, dict[str, Any]]:
        """For summary.json."""
        words = self.words()
        return {m: {"local_weight": getattr(self, m), "words": words[m]} for m in self._fields}


def find_references(collected: Collected, choosing: Choosing, by: Sequence[str]) -> References:
    """The constant mixes that rules are set against.

    Args:
      collected: all scores.
      choosing: what settings are chosen on.
      by: the metrics that they are chosen by; several count by places.
    """
    score_CIWX, share_CIZ = curves_of(collected, choosing.rows, choosing.share_CIZ)
    p_WX = np.einsum("ciwx,ci->wx", score_CIWX, share_CIZ[..., 0], optimize=True)
    return References(WEIGHTS[int(places(p_WX[..., None], by).argmin())])


def given_up(
    scores_CI: Mapping[str, np.ndarray], collected: Collected, test: Split, references: References
) -> GivenUp:
    """The paired differences to the references, by metric of `CURVE_METRICS` and measure.

    Args:
      scores_CI: a rule's scores of the test instances, by metric.
      collected: all scores, for those of the references.
      test: the test instances.
      references: what is taken off.

    Returns:
      Estimates with their intervals over instances and over clients; none below their minimums.
    """
    score_CIWX, _ = make_curves(collected, test.tasks, test.rows)
    share_CK = shares(test.tasks.own_CK)
    found: dict[str, dict[str, Estimate]] = {}
    for measure, weight in references._asdict().items():
        of_reference_CIX = score_CIWX[:, :, WEIGHTS.index(weight)]
        minus_CI = {
            name: scores_CI[name].astype(np.float64) - of_reference_CIX[..., x]
            for x, name in enumerate(CURVE_METRICS)
        }
        same = not minus_CI["nll"].any()
        for name, own_CI in minus_CI.items():
            found.setdefault(name, {})[measure] = (
                Estimate.none(0.0, "the answers are those of the reference")
                if same
                else estimate(
                    [Sample([own_CI], test.tasks)],
                    [share_CK[measure]],
                    span=METRICS[name].span,
                    paired=True,
                )
            )
    return found


def note_on_losses(references: References, chosen_on: str) -> str:
    """What the differences are to, in a sentence.

    Args:
      references: the two.
      chosen_on: where the first of them is best, in words.
    """
    words = references.words()
    return (
        f"Given up: P minus that of {words['P']}, of the {len(WEIGHTS)} constant mixes the best on "
        f"{chosen_on}; TTP minus that of {words['TTP']}. A loss is above 0 in NLL, and below "
        "0 in exact match. Each interval is of one difference, not corrected for their number."
    )
