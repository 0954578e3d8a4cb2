"""All settings of all rules are scored, and the best of each rule is chosen."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import chex
import numpy as np

from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.laboratory import candidates
from feddpa_jax.laboratory.choosing import HEADINGS, OTHER, OWN, Choosing
from feddpa_jax.laboratory.findings import describe, to_csv
from feddpa_jax.laboratory.grid import CURVE_METRICS, Grid, Scored, curves_of, score_rule
from feddpa_jax.laboratory.keeping import Kept, Parts, best_that_keep
from feddpa_jax.laboratory.material import Material
from feddpa_jax.laboratory.off_curve import try_exactly
from feddpa_jax.laboratory.options import Keep
from feddpa_jax.laboratory.reading import score_reading_rule
from feddpa_jax.progress import OnProgress, follow
from feddpa_jax.weighting.rule import on_curve, reads, told
from feddpa_jax.weighting.settings import WeightingSettings


class Tried(NamedTuple):
    """What came of it.

    Attributes:
      best: (label, settings) of every rule at its best, the best rule first.
      notes: how many were tried, how long it took, and how they were chosen.
      table: all settings with their scores, as CSV.
      kept: how P was kept; None where it was not asked for.
    """

    best: list[tuple[str, WeightingSettings]]
    notes: list[str]
    table: str
    kept: Kept | None


def try_all(
    rules: Sequence[str],
    by: Sequence[str],
    grid: Grid,
    given: Material,
    paper: WeightingSettings,
    keep: Keep | None,
    on_progress: OnProgress | None,
) -> Tried:
    """Scores all settings, and chooses.

    Args:
      rules: their names.
      by: the metrics that settings are chosen by.
      grid: what rules are tried with.
      given: what they are tried on.
      paper: the paper's rule, with the run's support and seed.
      keep: "p" to choose the best TTP of what keeps P.
      on_progress: as rules are done.

    Raises:
      UserError: a rule's similarities are not finite.
    """
    choosing = given.choosing
    start = time.perf_counter()
    settings, scored = _score_all(rules, grid, given, paper, bool(keep), on_progress)
    seconds = time.perf_counter() - start
    kept = None
    if keep:
        share_I = choosing.share_CIZ[..., 0].astype(np.float64).sum(axis=0)
        parts = Parts(scored.part_NXI, share_I, choosing.group_I, choosing.names)
        kept = best_that_keep(settings, scored.score_NXZ, parts, by)
    best = kept.best if kept else candidates.best_of_each(settings, scored.score_NXZ, by)
    note = (
        f"{len(settings):,} settings of {len(rules)} rules tried in {seconds:.1f} s; chosen on "
        f"{choosing.words}, {_how(by, choosing, kept)}; the best rule comes first."
    )
    table = to_csv(settings, scored.score_NXZ, HEADINGS[choosing.how])
    return Tried([(_label(own), own) for own in best], [note, *_note_on(kept)], table, kept)


def _label(settings: WeightingSettings) -> str:
    return f"best {told(settings.rule)}"


def _score_all(
    rules: Sequence[str],
    grid: Grid,
    given: Material,
    paper: WeightingSettings,
    by_instance: bool,
    on_progress: OnProgress | None,
) -> tuple[list[WeightingSettings], Scored]:
    """All settings and their scores, rule by rule; those on no curve last."""
    collected, choosing, seed = given.collected, given.choosing, paper.seed or 0
    everything: list[WeightingSettings] = []
    found: list[Scored] = []
    curved = [rule for rule in rules if on_curve(rule)]
    if curved:
        curves = curves_of(collected, choosing.rows, choosing.share_CIZ)
        with follow("trying", len(curved), "rules", on_progress) as advance:
            for rule in curved:
                score = score_reading_rule if reads(rule) else score_rule
                everything += grid.settings(rule, seed)
                found.append(
                    score(
                        *(rule, grid, collected, curves, choosing.rows),
                        seed=seed,
                        by_instance=by_instance,
                    )
                )
                advance(1)
    others = [rule for rule in rules if rule not in curved]
    if others:
        settings, exact = try_exactly(
            others, grid, given, paper, on_progress, by_instance=by_instance
        )
        everything += settings
        found += exact
    scored = Scored(*map(np.concatenate, zip(*found, strict=True)))
    chex.assert_shape(scored.score_NXZ, (len(everything), len(CURVE_METRICS), 2))
    return everything, scored


def _how(by: Sequence[str], choosing: Choosing, kept: Kept | None) -> str:
    """What settings are chosen by, in words."""
    named = " and ".join(METRICS[name].short for name in by)
    places = ", by places" if len(by) > 1 else ""
    if kept is None:
        return f"by the mean of both in {named}{places}"
    return (
        f"by the best {OTHER[choosing.how]} in {named}{places} of the settings that lose nothing "
        f"on {OWN[choosing.how]} beyond the 95 % interval over instances, against the best there"
    )


def _note_on(kept: Kept | None) -> list[str]:
    """What P was kept against, and which rules do not keep it."""
    if kept is None:
        return []
    reference = kept.reference
    notes = [f"The best on these: {told(reference.rule)} ({describe(reference)})."]
    if kept.losing:
        names = ", ".join(map(told, kept.losing))
        notes.append(
            f"Every setting of these rules loses there; they come last, with their best: {names}."
        )
    return notes
