"""Many comparisons: which differences stand, when there are several.

S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of
Statistics 1979: of m p-values, ascending, the i-th is set against level / (m - i + 1), and the
first that is above ends it. With 95 % confidence, then, none of the differences that stand is 0.
"""

import math
from collections.abc import Sequence

from feddpa_jax.evaluate.interval import Estimate
from feddpa_jax.evaluate.spread import CONFIDENCE

# What a difference may stand over, and how tables say it.
_KINDS = {"over_instances": "instances", "over_clients": "clients"}


def holm(p_values: Sequence[float], level: float = 1 - CONFIDENCE) -> list[bool]:
    """Which null hypotheses are rejected.

    Args:
      p_values: of each; NaN counts as a hypothesis that cannot be rejected.
      level: the greatest probability that any is rejected wrongly.

    >>> holm([0.01, 0.04, 0.03])
    [True, False, False]
    """
    stands = [False] * len(p_values)
    ordered = sorted(range(len(p_values)), key=lambda i: (math.isnan(p_values[i]), p_values[i]))
    for place, i in enumerate(ordered):
        if not p_values[i] <= level / (len(ordered) - place):
            break
        stands[i] = True
    return stands


def standing(differences: Sequence[Estimate]) -> list[str]:
    """Over what each of several paired differences stands after Holm's correction.

    Each kind of interval is a family of its own: its paired t-tests are corrected together.

    Args:
      differences: all that are set against one, so that a reader might pick the best of them.

    Returns:
      For each "instances", "clients", "instances, clients" or "–" for none.
    """
    found = [holm([getattr(one, kind).p for one in differences]) for kind in _KINDS]
    return [
        ", ".join(name for name, stands in zip(_KINDS.values(), own, strict=True) if stands) or "–"
        for own in zip(*found, strict=True)
    ]


def holm_note(count: int) -> str:
    """What `standing` says of so many differences, in a sentence."""
    differences = f"{count} difference{'' if count == 1 else 's'}"
    return (
        "“stands over”: what a difference stands over after Holm’s correction of the paired "
        f"t-tests for {differences} (P and TTP of every row), at 95 %."
    )
