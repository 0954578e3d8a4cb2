"""What is compared on the test instances: fixed points, every rule at its best, and bounds."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from feddpa_jax.evaluate.evidence import WeightingSettings
from feddpa_jax.metrics import Tasks
from feddpa_jax.types import UserError
from feddpa_jax.weigh.collect import WEIGHTS, Collected
from feddpa_jax.weighting.rules import make_weighting


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
    """Every client's local weight of every instance, [C, J], as evaluation would have it."""
    rule = jax.jit(make_weighting(settings.rule, scale=settings.scale, scales=settings.scales))
    return np.stack(
        [
            np.asarray(rule(collected.evidence(c, settings)).local_weight_B)
            for c in range(len(collected.questions.ids))
        ]
    )


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


def objective(score_XZ: np.ndarray) -> np.ndarray:
    """What settings are chosen by: the mean of P and TTP in NLL, [..., X, Z] -> [...]."""
    return score_XZ[..., 0, :].mean(axis=-1)


def best(
    settings: Sequence[WeightingSettings], score_NXZ: np.ndarray
) -> tuple[WeightingSettings, float]:
    """The setting of the lowest objective, the first of equals, and its objective.

    Raises:
      UserError: it is finite in none.
    """
    value_N = objective(score_NXZ)
    value_N = np.where(np.isfinite(value_N), value_N, np.inf)
    place = int(value_N.argmin())
    if not np.isfinite(value_N[place]):
        raise UserError(
            f"--rules: {settings[0].rule} gives similarities that are not finite in all of its "
            f"{len(settings)} settings; mend it, or leave it out"
        )
    return settings[place], float(value_N[place])
