"""The choice of a setting that keeps P: the best TTP among those that lose nothing on P for sure.

The setting with the best P of all is the reference. A setting is out if it loses against that: if
the 95 % interval of the paired difference in P, on what settings are chosen on, leaves 0 out on
the losing side. The interval is over instances, the clients fixed (`evaluate/estimating.py`): what
else these clients might be asked. Of each rule's settings, in the order of TTP, the first that is
not out is chosen; where all are out, the rule's best P, and it stands behind the others.

The reference is the best of many on the same examples, so it looks better than it is. That makes
the choice careful: more settings are out than should be, not fewer.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.evaluate.estimating import MIN_INSTANCES, MIN_PER_TASK, Sample, estimate
from feddpa_jax.evaluate.interval import Interval
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.laboratory.candidates import places
from feddpa_jax.laboratory.choosing import Choosing
from feddpa_jax.laboratory.findings import told
from feddpa_jax.laboratory.grid import CURVE_METRICS
from feddpa_jax.types import UserError
from feddpa_jax.weighting.settings import WeightingSettings


@dataclasses.dataclass(frozen=True)
class Kept:
    """The settings that are chosen.

    Attributes:
      best: of each rule, the best rule first.
      reference: the setting with the best P.
      losing: rules of which every setting loses on P; theirs is the one with the best P.
    """

    best: tuple[WeightingSettings, ...]
    reference: WeightingSettings
    losing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "measure": "P",
            "interval": "over_instances",
            "reference": told(self.reference),
            "losing": list(self.losing),
        }


class Parts(NamedTuple):
    """What is asked of every setting on each instance, and how instances stand for P.

    Attributes:
      part_NXI: by metric of `CURVE_METRICS`, what each instance adds to a setting's P.
      share_I: what an instance's score counts in P, over all clients; 0 for none.
      group_I: the place of the client that an instance is of, or of its task.
      names: of the groups.
    """

    part_NXI: np.ndarray
    share_I: np.ndarray
    group_I: np.ndarray
    names: Sequence[str]

    def difference(self, setting: int, reference: int, metric: str) -> Interval:
        """P of a setting minus that of another, with the interval over instances."""
        x = CURVE_METRICS.index(metric)
        counts_I = self.share_I > 0
        minus_I = (self.part_NXI[setting, x] - self.part_NXI[reference, x]).astype(np.float64)
        used_K, task_I = np.unique(self.group_I[counts_I], return_inverse=True)
        names = tuple(str(self.names[k]) for k in used_K)
        tasks = Tasks(names, task_I, np.ones((1, len(names)), bool))
        # One client that stands for all: what an instance adds, for all that it counts.
        score_1I = (minus_I[counts_I] / self.share_I[counts_I])[None]
        share_1K = np.bincount(task_I, weights=self.share_I[counts_I])[None]
        span = METRICS[metric].span
        found = estimate([Sample([score_1I], tasks)], [share_1K], span=span, paired=True)
        return found.over_instances

    def loses(self, setting: int, reference: int, metric: str) -> bool:
        """Whether the interval of the difference in P leaves 0 out on the losing side."""
        loss = 1 if METRICS[metric].lower_is_better else -1
        found = self.difference(setting, reference, metric)
        if not found.bounded:
            # All instances differ alike: there is no doubt about the value.
            return loss * found.value > 0
        return (found.low if loss > 0 else -found.high) > 0


def check_enough(choosing: Choosing) -> None:
    """Refuses to choose by an interval for which there are too few instances.

    Raises:
      UserError: how many there are, and what to do.
    """
    share_I = choosing.share_CIZ[..., 0].sum(axis=0)
    count_K = collections.Counter(choosing.group_I[share_I > 0].tolist())
    remedy = "train with a larger --data.validation, such as 16, or leave keep out"
    if not count_K:
        raise UserError(f"keep: no held-out example counts for P; {remedy}")
    least = min(count_K, key=lambda k: count_K[k])
    if count_K[least] < MIN_PER_TASK:
        kind = "client" if choosing.how == "client" else "task"
        raise UserError(
            f"keep: {kind} {choosing.names[least]!r} has {count_K[least]} held-out examples, and "
            f"an interval of P needs {MIN_PER_TASK} of each; {remedy}"
        )
    total = sum(count_K.values())
    if total < MIN_INSTANCES:
        raise UserError(
            f"keep: {total} held-out examples count for P, and an interval needs {MIN_INSTANCES}; "
            f"{remedy}"
        )


def best_that_keep(
    settings: Sequence[WeightingSettings],
    score_NXZ: np.ndarray,
    parts: Parts,
    by: Sequence[str],
) -> Kept:
    """Each rule's best TTP of the settings that lose nothing on P, the best rule first.

    Args:
      settings: all that were tried.
      score_NXZ: by metric of `CURVE_METRICS`; P and TTP.
      parts: of their P.
      by: the metrics that count: a setting is out if it loses in any.

    Raises:
      UserError: a rule's scores are finite in none.
    """
    p_N, ttp_N = (places(score_NXZ[..., z : z + 1], by) for z in (0, 1))
    reference = int(p_N.argmin())
    keeping, losing = [], []
    for rule in dict.fromkeys(setting.rule for setting in settings):
        own = np.flatnonzero([setting.rule == rule for setting in settings])
        own = own[np.isfinite(p_N[own]) & np.isfinite(ttp_N[own])]
        if not len(own):
            raise UserError(
                f"rules: {rule} gives similarities that are not finite in any of its settings; "
                "fix it, or leave it out"
            )
        ordered = own[np.argsort(ttp_N[own], kind="stable")]
        kept = (n for n in ordered if not any(parts.loses(n, reference, m) for m in by))
        found = next(kept, None)
        if found is None:
            losing.append(own[p_N[own].argmin()])
        else:
            keeping.append(found)
    keeping.sort(key=lambda n: ttp_N[n])
    losing.sort(key=lambda n: p_N[n])
    return Kept(
        tuple(settings[n] for n in [*keeping, *losing]),
        settings[reference],
        tuple(settings[n].rule for n in losing),
    )
