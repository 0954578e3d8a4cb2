"""Rules whose scores lie on no curve: they are run exactly, on held-out and on test instances.

Such a rule weighs layers apart, so that no single weight tells how it answers, or computes with the
model itself, so that its evidence cannot be collected once for all settings.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from feddpa_jax.evaluate.modes import ModeWeights, instance_weights
from feddpa_jax.hyperparameters import Values
from feddpa_jax.inference.scorer import Request, Scorer
from feddpa_jax.laboratory.candidates import Candidate
from feddpa_jax.laboratory.findings import Finding, Split, interpolated, summarize_all
from feddpa_jax.laboratory.given_up import References, given_up
from feddpa_jax.laboratory.grid import CURVE_METRICS, Grid, Scored
from feddpa_jax.laboratory.material import Material
from feddpa_jax.laboratory.questions import Questions
from feddpa_jax.laboratory.separation import separate
from feddpa_jax.progress import OnProgress, follow
from feddpa_jax.weighting.gathering import gather_own
from feddpa_jax.weighting.rule import RULES, learns, runs_model, sees
from feddpa_jax.weighting.settings import WeightingSettings

_log = logging.getLogger(__name__)

# How many settings are tried of a rule on no curve that was not named.
FEW = 4


class Exact(NamedTuple):
    """Scores of new forward passes on some instances, and the weights, [C, I].

    Attributes:
      scores_CI: by metric of `CURVE_METRICS`.
      weight_CI: local weights; means over layers.
    """

    scores_CI: dict[str, np.ndarray]
    weight_CI: np.ndarray


def off_curve_settings(rule: str, grid: Grid, paper: WeightingSettings) -> list[WeightingSettings]:
    """What a rule on no curve is tried with: its hyperparameters and scales.

    Where rules are not named (`grid.few`), it is `FEW` of them, from the first to the last; of a
    rule that computes with the model itself, whose own cost is far above an answer's, it is the
    default. Values that are given for the rule are all tried.

    Args:
      rule: its name.
      grid: hyperparameters and scales to try.
      paper: the paper's rule, with the run's support and seed.
    """
    embeds = any(name.endswith("D") for name in sees(RULES.find(rule)))
    found = [
        dataclasses.replace(
            paper, rule=rule, scale=scale, scales=side, parameters=values, embed_with=model
        )
        for model in (grid.embed_exactly if embeds else grid.embed_exactly[:1])
        for values in grid.combinations(rule)
        for scale, side in grid.scalings(rule)
    ]
    if not grid.few or rule in grid.parameters:
        return found
    if runs_model(rule):
        return [dataclasses.replace(found[0], parameters=Values())]
    places = np.linspace(0, len(found) - 1, min(FEW, len(found)))
    return [found[int(place)] for place in places]


def weigh_exactly(
    scorer: Scorer, questions: Questions, settings: WeightingSettings, place_CB: np.ndarray
) -> ModeWeights:
    """Every client's weights of some instances, [C, B], as evaluation would have them.

    But a rule that learns weighs the client's own held-out examples by what it learnt from others.
    """
    clients = range(len(questions.ids))
    fold_CB = np.take_along_axis(questions.folds(), place_CB, axis=1)
    found: ModeWeights | None = None
    for fold in np.unique(fold_CB).tolist() if learns(settings.rule) else [-1]:
        held = [[questions.instances[j] for j in questions.held_without(c, fold)] for c in clients]
        weights = instance_weights(
            gather_own(
                scorer,
                questions.ids,
                questions.training,
                [[questions.instances[j] for j in place_B] for place_B in place_CB],
                questions.dreams,
                settings,
                held=held,
                read=questions.read,
            ),
            settings,
        )
        found = weights if found is None else weights.where(fold_CB == fold, found)
    assert found is not None
    return found


def places(needed_CI: np.ndarray, start: int) -> np.ndarray:
    """Where each client's instances are that are needed, [C, B]; the last one fills up a row.

    >>> places(np.array([[True, False, True], [False, True, False]]), 5)
    array([[5, 7],
           [6, 6]])
    """
    most = max(int(needed_CI.sum(axis=1).max()), 1)
    found = np.zeros((len(needed_CI), most), int)
    for place_B, needed_I in zip(found, needed_CI, strict=True):
        own = np.flatnonzero(needed_I)
        place_B[: len(own)] = own
        place_B[len(own) :] = own[-1] if len(own) else 0
    return found + start


def score_exactly(
    given: Material,
    settings: WeightingSettings,
    rows: slice,
    *,
    needed_CI: np.ndarray | None = None,
    advance: Callable[[float], None] = lambda done: None,
) -> Exact:
    """Clients' scores of some instances, with nothing interpolated.

    Args:
      given: what rules are tried on.
      settings: the rule's.
      rows: which instances.
      needed_CI: the answers that are needed, the others are 0 then; None for all.
      advance: told how many answers were weighed, and how many scored.
    """
    questions = given.collected.questions
    shape = (len(questions.ids), len(questions.instances[rows]))
    needed_CI = np.ones(shape, bool) if needed_CI is None else needed_CI
    place_CB = places(needed_CI, rows.start)
    weights = weigh_exactly(given.scorer, questions, settings, place_CB)
    advance(place_CB.size)
    requests = [
        Request(c, questions.instances[j], *weights.at(c, b))
        for c, place_B in enumerate(place_CB)
        for b, j in enumerate(place_B.tolist())
    ]
    scores = given.scorer(requests, advance, layers=())
    weights = weights.seen(scores.gated_IL)
    match_CB = scores.greedy_I.reshape(place_CB.shape) & given.can_J[place_CB]

    def spread(values_CB: np.ndarray) -> np.ndarray:
        found_CI = np.zeros(shape)
        np.put_along_axis(found_CI, place_CB - rows.start, values_CB, axis=1)
        return np.where(needed_CI, found_CI, 0.0)

    values = (spread(scores.nll_I.reshape(place_CB.shape)), spread(100.0 * match_CB))
    return Exact(dict(zip(CURVE_METRICS, values, strict=True)), spread(weights.means().local_CI))


def score_settings(
    given: Material,
    settings: Sequence[WeightingSettings],
    *,
    by_instance: bool,
    advance: Callable[[float], None] = lambda done: None,
) -> Scored:
    """What settings are chosen by, as `score_rule` gives it."""
    share_CIZ = given.choosing.share_CIZ.astype(np.float64)
    needed_CI, rows = _needed(given), given.choosing.rows
    told = share_CIZ.shape[1] if by_instance else 0
    found, parts = [], []
    for setting in settings:
        own = score_exactly(given, setting, rows, needed_CI=needed_CI, advance=advance)
        found.append([np.einsum("ci,ciz->z", own.scores_CI[m], share_CIZ) for m in CURVE_METRICS])
        part_XCI = [own.scores_CI[m] * share_CIZ[..., 0] for m in CURVE_METRICS]
        parts.append(np.sum(part_XCI, axis=1)[:, :told])
    return Scored(np.array(found), np.array(parts))


def try_exactly(
    rules: Sequence[str],
    grid: Grid,
    given: Material,
    paper: WeightingSettings,
    on_progress: OnProgress | None,
    *,
    by_instance: bool = False,
) -> tuple[list[WeightingSettings], list[Scored]]:
    """All settings of rules on no curve, and their scores, rule by rule; the cost is told first."""
    settings = [off_curve_settings(rule, grid, paper) for rule in rules]
    count = sum(map(len, settings))
    choosing = places(_needed(given), 0).size
    total = 2 * count * choosing
    _log.info(
        f"rules on no curve: {', '.join(rules)}; {count} settings are run exactly, each on "
        f"{choosing:,} answers, and then the best of each rule on {_whole(given):,}, the held-out "
        f"and the test instances of all clients: {count * choosing + len(rules) * _whole(given):,} "
        f"answers to weigh and to score (the evidence had "
        f"{given.collected.questions.requests(given.scorer.adapters):,}), besides what a rule "
        "itself learns; name others in rules to leave them out"
    )
    with follow("trying exactly", total, "answers", on_progress) as advance:
        scores = [
            score_settings(given, own, by_instance=by_instance, advance=advance) for own in settings
        ]
    return [setting for own in settings for setting in own], scores


def _needed(given: Material) -> np.ndarray:
    """The answers that settings are chosen by, [C, I]."""
    return np.asarray((given.choosing.share_CIZ != 0).any(axis=-1))


def _whole(given: Material) -> int:
    """How many answers all clients give to the held-out and the test instances."""
    rows = slice(given.validation.rows.start, given.test.rows.stop)
    return len(given.collected.questions.ids) * (rows.stop - rows.start)


def find_exactly(
    given: Material,
    found: Sequence[tuple[str, WeightingSettings]],
    paper: WeightingSettings,
    references: References,
    on_progress: OnProgress | None = None,
) -> list[Finding]:
    """The scores of settings on both splits, and the differences to the paper's rule, run alike.

    Args:
      given: what rules are tried on.
      found: labels and settings of rules on no curve.
      paper: the paper's rule, with the run's support and seed.
      references: what they may give up something against.
      on_progress: called as answers are done.
    """
    if not found:
        return []
    rows = slice(given.validation.rows.start, given.test.rows.stop)
    total = 2 * (
        len(found) * _whole(given)
        + len(given.collected.questions.ids) * len(given.test.tasks.task_I)
    )
    with follow("running exactly", total, "answers", on_progress) as advance:
        of_paper = score_exactly(given, paper, given.test.rows, advance=advance)
        return [
            _finding(
                given,
                label,
                settings,
                score_exactly(given, settings, rows, advance=advance),
                of_paper,
                references,
            )
            for label, settings in found
        ]


def _finding(
    given: Material,
    label: str,
    settings: WeightingSettings,
    own: Exact,
    of_paper: Exact,
    references: References,
) -> Finding:
    """One of them: both splits were run together, so that a rule that learns does so once."""
    first = given.validation.rows.start

    def of(split: Split) -> dict[str, np.ndarray]:
        at = slice(split.rows.start - first, split.rows.stop - first)
        return {name: scores_CI[:, at] for name, scores_CI in own.scores_CI.items()}

    on_test = of(given.test)
    minus = {name: scores_CI - of_paper.scores_CI[name] for name, scores_CI in on_test.items()}
    weight_CJ = np.full(given.collected.nll_CJW.shape[:2], np.nan)
    weight_CJ[:, first : given.test.rows.stop] = own.weight_CI
    alone = interpolated(given.collected, given.test, np.zeros_like(weight_CJ))
    minus_global_CI = {name: on_test[name] - alone_CI for name, alone_CI in alone.items()}
    return Finding(
        Candidate(label, settings, weight_CJ),
        summarize_all(of(given.validation), given.validation),
        summarize_all(on_test, given.test),
        summarize_all(minus, given.test, paired=True),
        given_up=given_up(on_test, given.collected, given.test, references),
        minus_global_CI=minus_global_CI,
        minus_global=summarize_all(minus_global_CI, given.test, paired=True),
        separation=separate(weight_CJ[:, given.test.rows], given.test.own_cells()),
    )
