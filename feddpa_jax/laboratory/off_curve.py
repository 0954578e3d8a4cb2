"""Rules whose scores lie on no curve: they are run exactly, on held-out and on test instances.

Such a rule weighs layers apart, so that no single weight tells how it answers, or computes with the
model itself, so that its evidence cannot be collected once for all settings.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from feddpa_jax.evaluate.modes import ModeWeights, instance_weights
from feddpa_jax.inference.scorer import Request, Scorer
from feddpa_jax.laboratory.candidates import Candidate
from feddpa_jax.laboratory.collect import Questions
from feddpa_jax.laboratory.findings import Finding, summarize_all
from feddpa_jax.laboratory.grid import CURVE_METRICS, Grid
from feddpa_jax.laboratory.material import Material
from feddpa_jax.weighting.gathering import gather
from feddpa_jax.weighting.rule import learns
from feddpa_jax.weighting.settings import WeightingSettings


class Exact(NamedTuple):
    """Scores of new forward passes on some instances, and the weights, [C, I].

    Attributes:
      scores_CI: by metric of `CURVE_METRICS`.
      weight_CI: local weights; means over layers.
    """

    scores_CI: dict[str, np.ndarray]
    weight_CI: np.ndarray


def off_curve_settings(rule: str, grid: Grid, paper: WeightingSettings) -> list[WeightingSettings]:
    """What a rule on no curve is tried with: its hyperparameters and scales, embedded by default.

    Args:
      rule: its name.
      grid: hyperparameters and scales to try.
      paper: the paper's rule, with the run's support and seed.
    """
    return [
        dataclasses.replace(paper, rule=rule, scale=scale, scales=side, parameters=values)
        for values in grid.combinations(rule)
        for scale, side in grid.scalings(rule)
    ]


def weigh_exactly(
    scorer: Scorer, questions: Questions, settings: WeightingSettings, rows: slice
) -> ModeWeights:
    """Every client's weights of some instances, as evaluation would have them.

    But a rule that learns weighs the client's own held-out examples by what it learnt from others.
    """
    fold_CI = questions.folds()[:, rows]
    clients = range(len(questions.ids))
    found: ModeWeights | None = None
    for fold in np.unique(fold_CI).tolist() if learns(settings.rule) else [-1]:
        held = [[questions.instances[j] for j in questions.held_without(c, fold)] for c in clients]
        weights = instance_weights(
            gather(
                scorer,
                questions.ids,
                questions.training,
                questions.instances[rows],
                questions.dreams,
                settings,
                held=held,
                read=questions.read,
            ),
            settings,
        )
        found = weights if found is None else weights.where(fold_CI == fold, found)
    assert found is not None
    return found


def score_exactly(given: Material, settings: WeightingSettings, rows: slice) -> Exact:
    """All clients' scores of some instances, with nothing interpolated."""
    questions = given.collected.questions
    weights = weigh_exactly(given.scorer, questions, settings, rows)
    instances = questions.instances[rows]
    clients = range(len(questions.ids))
    requests = [
        Request(c, example, *weights.at(c, i))
        for c in clients
        for i, example in enumerate(instances)
    ]
    scores = given.scorer(requests, layers=())
    weights = weights.seen(scores.gated_IL)
    shape = (len(clients), len(instances))
    match_CI = scores.greedy_I.reshape(shape) & given.can_J[rows]
    values = (scores.nll_I.reshape(shape), 100.0 * match_CI)
    return Exact(dict(zip(CURVE_METRICS, values, strict=True)), weights.means().local_CI)


def score_settings(given: Material, settings: Sequence[WeightingSettings]) -> np.ndarray:
    """What settings are chosen by, [settings, X, Z], as `score_rule` gives it."""
    share_CIZ = given.choosing.share_CIZ.astype(np.float64)
    found = []
    for setting in settings:
        scores_CI = score_exactly(given, setting, given.choosing.rows).scores_CI
        found.append([np.einsum("ci,ciz->z", scores_CI[m], share_CIZ) for m in CURVE_METRICS])
    return np.array(found)


def find_exactly(
    given: Material, label: str, settings: WeightingSettings, paper: WeightingSettings
) -> Finding:
    """The scores of a setting on both splits, and the difference to the paper's rule, run alike."""
    splits = (given.validation, given.test)
    on_validation, on_test = (score_exactly(given, settings, split.rows) for split in splits)
    of_paper = score_exactly(given, paper, given.test.rows).scores_CI
    minus = {name: s - of_paper[name] for name, s in on_test.scores_CI.items()}
    weight_CJ = np.full(given.collected.nll_CJW.shape[:2], np.nan)
    for split, own in zip(splits, (on_validation, on_test), strict=True):
        weight_CJ[:, split.rows] = own.weight_CI
    return Finding(
        Candidate(label, settings, weight_CJ),
        summarize_all(on_validation.scores_CI, given.validation),
        summarize_all(on_test.scores_CI, given.test),
        summarize_all(minus, given.test, paired=True),
    )
