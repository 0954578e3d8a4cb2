"""What is compared on the test instances: fixed points, every rule at its best, and bounds."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.laboratory.collect import WEIGHTS, Collected
from feddpa_jax.laboratory.grid import CURVE_METRICS
from feddpa_jax.types import UserError
from feddpa_jax.weighting.rule import learns
from feddpa_jax.weighting.settings import WeightingSettings
from feddpa_jax.weighting.weights import make_weighting


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to weigh instances.

    Attributes:
      label: what it is, where it is more than a setting.
      settings: the rule's; None for an upper bound.
      weight_CJ: local weights of all instances.
      is_bound: it knows what no client knows before it answers.
    """

    label: str
    settings: WeightingSettings | None
    weight_CJ: np.ndarray
    is_bound: bool = False


def weigh(collected: Collected, settings: WeightingSettings) -> np.ndarray:
    """Every client's local weight of every instance, [C, J], as evaluation would have it.

    But a rule that learns weighs the client's own held-out examples by what it learnt from others.
    """
    rule = jax.jit(
        make_weighting(
            settings.rule,
            scale=settings.scale,
            scales=settings.scales,
            parameters=settings.parameters,
        )
    )
    fold_CJ = collected.questions.folds()
    weight_CJ = np.empty(fold_CJ.shape, np.float32)
    for c, fold_J in enumerate(fold_CJ):
        for fold in np.unique(fold_J) if learns(settings.rule) else (-1,):
            found_J = rule(collected.evidence(c, settings, fold=int(fold))).local_weight_B
            weight_CJ[c] = np.where((fold_J == fold) | (fold < 0), found_J, weight_CJ[c])
    return weight_CJ


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
    """Bounds: weights from what no client knows before it answers.

    A rule that tells instances apart within a task may do better than the first, none than the
    second. "knows the task" has one weight for the client's own tasks and one for all others, each
    the best on validation; "knows the answer" the best of `WEIGHTS` for every single answer.

    Args:
      collected: all scores.
      tasks: of "validation" and "test".
      rows: where these are among the instances.
    """
    nll_CJW = collected.nll_CJW
    own_CJ = np.zeros(nll_CJW.shape[:2], bool)
    for name, of in tasks.items():
        own_CJ[:, rows[name]] = of.own_CK[:, of.task_I]
    known = np.zeros_like(own_CJ)
    known[:, rows["validation"]] = True
    grid_W = np.array(WEIGHTS)
    by_task = np.zeros(own_CJ.shape)
    for side in (own_CJ, ~own_CJ):
        if (side & known).any():
            by_task[side] = grid_W[nll_CJW[side & known].mean(axis=0).argmin()]
    return [
        Candidate("bound: knows the task", None, by_task, is_bound=True),
        Candidate("bound: knows the answer", None, grid_W[nll_CJW.argmin(axis=-1)], is_bound=True),
    ]


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
