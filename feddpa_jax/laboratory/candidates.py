"""What is compared on the test instances: fixed points, every rule at its best, and bounds."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.laboratory.collect import WEIGHTS, Collected
from feddpa_jax.laboratory.grid import CURVE_METRICS
from feddpa_jax.types import UserError
from feddpa_jax.weighting.rule import learns
from feddpa_jax.weighting.settings import WeightingSettings
from feddpa_jax.weighting.weights import compiled


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to weigh instances.

    Attributes:
      label: what it is, where it is more than a setting.
      settings: the rule's; None for an upper bound.
      weight_CJ: local weights of all instances.
      by_metric: of a bound, which knows what no client knows before it answers: the weights that
        are best by each metric of `CURVE_METRICS`; else None.
    """

    label: str
    settings: WeightingSettings | None
    weight_CJ: np.ndarray
    by_metric: Mapping[str, np.ndarray] | None = None

    @property
    def is_bound(self) -> bool:
        """Whether it knows what no client knows before it answers."""
        return self.by_metric is not None


def weigh(collected: Collected, settings: WeightingSettings) -> np.ndarray:
    """Every client's local weight of every instance, [C, J], as evaluation would have it.

    But a rule that learns weighs the client's own held-out examples by what it learnt from others.
    """
    return _given(collected, settings, "local_weight_B")


def similarities(collected: Collected, settings: WeightingSettings) -> np.ndarray:
    """The similarities that `weigh` makes weights of, [C, J]."""
    return _given(collected, settings, "similarity_B")


def _given(collected: Collected, settings: WeightingSettings, field: str) -> np.ndarray:
    """A field of every client's `InstanceWeights` of every instance, [C, J]."""
    rule = compiled(settings)
    fold_CJ = collected.questions.folds()
    given_CJ = np.empty(fold_CJ.shape, np.float32)
    for c, fold_J in enumerate(fold_CJ):
        for fold in np.unique(fold_J) if learns(settings.rule) else (-1,):
            found_J = getattr(rule(collected.evidence(c, settings, fold=int(fold))), field)
            given_CJ[c] = np.where((fold_J == fold) | (fold < 0), found_J, given_CJ[c])
    return given_CJ


def fixed_points(paper: WeightingSettings) -> dict[str, WeightingSettings]:
    """What every rule is measured against, by label.

    Args:
      paper: the paper's rule, with the run's support and seed.
    """
    return {
        "global alone": dataclasses.replace(paper, rule="constant", scale=0.0),
        "local alone": dataclasses.replace(paper, rule="constant", scale=1.0),
        "half of each": dataclasses.replace(paper, rule="constant", scale=0.5),
        "paper": paper,
        "released code": dataclasses.replace(paper, scales="global"),
    }


def bounds(
    collected: Collected, tasks: Mapping[str, Tasks], rows: Mapping[str, slice]
) -> list[Candidate]:
    """Bounds: weights that are best for the very answers that they are scored on, by each metric.

    "knows the task" has each client's best weight for each task: no rule that gives a client one
    weight per task is better; one that tells instances apart within a task may be. "knows the
    answer" has the best weight of every single answer: no rule at all is better, as far as answers
    lie on the curves.

    Args:
      collected: all scores.
      tasks: of "validation" and "test".
      rows: where these are among the instances.
    """
    of_task: dict[str, np.ndarray] = {}
    of_answer: dict[str, np.ndarray] = {}
    for metric in CURVE_METRICS:
        cost_CJW = _costs(collected, metric)
        of_answer[metric] = _WEIGHTS[cost_CJW.argmin(axis=-1)]
        by_task_CJ = np.zeros(cost_CJW.shape[:2])
        for name, own in tasks.items():
            part_CIW, weight_CI = cost_CJW[:, rows[name]], by_task_CJ[:, rows[name]]
            for members_I in own.members():
                mean_CW = part_CIW[:, members_I].mean(axis=1)
                weight_CI[:, members_I] = _WEIGHTS[mean_CW.argmin(axis=-1)][:, None]
        of_task[metric] = by_task_CJ
    return [
        Candidate(label, None, found["nll"], by_metric=found)
        for label, found in (
            ("bound: knows the task", of_task),
            ("bound: knows the answer", of_answer),
        )
    ]


_WEIGHTS = np.array(WEIGHTS)


def _costs(collected: Collected, metric: str) -> np.ndarray:
    """What is to be low: scores by a metric of `CURVE_METRICS` at each of `WEIGHTS`, [C, J, W]."""
    if metric == "nll":
        return collected.nll_CJW
    return -collected.greedy_CJW.astype(np.float32)


def places(score_NXZ: np.ndarray, by: Sequence[str]) -> np.ndarray:
    """Where each setting stands among others, [N] from 0 (the best) to below 1.

    It is the share of settings whose mean of P and TTP is better, averaged over metrics: metrics
    of any scale count the same. Infinite where a score is not finite.

    Args:
      score_NXZ: by metric of `CURVE_METRICS`; P and TTP.
      by: the metrics that count.
    """
    found = []
    for name in by:
        mean_N = score_NXZ[:, CURVE_METRICS.index(name)].mean(axis=-1)
        cost_N = mean_N if METRICS[name].lower_is_better else -mean_N
        cost_N = np.where(np.isfinite(cost_N), cost_N, np.inf)
        place_N = np.searchsorted(np.sort(cost_N), cost_N) / len(cost_N)
        found.append(np.where(np.isfinite(cost_N), place_N, np.inf))
    return np.mean(found, axis=0)


def best_of_each(
    settings: Sequence[WeightingSettings], score_NXZ: np.ndarray, by: Sequence[str]
) -> list[WeightingSettings]:
    """The best setting of every rule, the best rule first.

    A rule's settings stand among that rule's alone, so that which others are tried does not matter
    to it, and the rules among each other with their best ones. Of equals the first is taken.

    Raises:
      UserError: a rule's scores are finite in none.
    """
    chosen = []
    for rule in dict.fromkeys(setting.rule for setting in settings):
        own = np.flatnonzero([setting.rule == rule for setting in settings])
        place_N = places(score_NXZ[own], by)
        if not np.isfinite(place_N.min()):
            raise UserError(
                f"rules: {settings[own[0]].rule} gives similarities that are not finite in any "
                "of its settings; fix it, or leave it out"
            )
        chosen.append(own[place_N.argmin()])
    order = np.argsort(places(score_NXZ[chosen], by), kind="stable")
    return [settings[chosen[i]] for i in order]
