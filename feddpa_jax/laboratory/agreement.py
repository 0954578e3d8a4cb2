"""What the laboratory's numbers are worth, in words: interpolation, and a constant answer."""

from collections.abc import Sequence

import numpy as np

from feddpa_jax.evaluate.estimating import summarize
from feddpa_jax.evaluate.evaluation import Asked
from feddpa_jax.evaluate.interval import LEGEND, Estimate, missing_notes
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.evaluate.most_common import most_common_scores
from feddpa_jax.laboratory.choosing import OWN
from feddpa_jax.laboratory.findings import Finding, notes_on_rouge
from feddpa_jax.laboratory.given_up import References, note_on_losses
from feddpa_jax.laboratory.material import Material
from feddpa_jax.laboratory.standing import PAPER, describe_standing


def remarks(
    given: Material,
    findings: Sequence[Finding],
    first: Finding,
    errors: dict[str, dict[str, float]],
    references: References,
) -> list[str]:
    """What the numbers are worth, in sentences.

    Args:
      given: what rules were tried on.
      findings: all.
      first: that of the best rule.
      errors: of interpolation, by metric and measure.
      references: what rules may give something up against.
    """
    targets = [example.output for example in given.setting.instances]
    return [
        _note_on_the_first(first),
        note_on_losses(references, OWN[given.choosing.how]),
        *describe_agreement(findings, errors),
        note_on_the_most_common_answer(given.setting),
        *notes_on_rouge(findings, targets),
    ]


def _note_on_the_first(finding: Finding) -> str:
    """What the first choice does against the global adapter alone, in a sentence.

    Args:
      finding: of the best rule.
    """
    told = [
        f"{name} {METRICS[metric].cell(getattr(summary, name.lower()), fine=True)}"
        f" {METRICS[metric].title}"
        for metric, summary in finding.minus_global.items()
        for name in ("P", "TTP")
    ]
    weights = ""
    if finding.separation is not None:
        own, foreign, auc = finding.separation.cells()
        weights = f"; local weight {own} on own and {foreign} on foreign instances, AUC {auc}"
    return f"The first choice minus the global adapter alone: {', '.join(told)}{weights}."


def describe_agreement(
    findings: Sequence[Finding], errors: dict[str, dict[str, float]]
) -> list[str]:
    """How well interpolated and exact numbers agree, in a sentence."""
    notes = [
        f"{LEGEND} Bounds are no rules: their weights are the best for the very answers that they "
        "are scored on, by each metric. No rule with one weight per client and task beats the "
        "first, none on the curves the second.",
        *missing_notes([*_minus_paper(findings), *_given_up(findings)]),
        describe_standing(findings),
    ]
    told = []
    for name, stated in errors.items():
        digits = METRICS[name].fine_digits + 1
        text = f"{METRICS[name].short} {stated['P']:.{digits}f} and {stated['TTP']:.{digits}f}"
        pairs = [(f.exact[name], f.test[name]) for f in findings if f.exact and name in f.exact]
        if pairs:
            off_p, off_ttp = (
                max(abs(getattr(exact, z).value - getattr(test, z).value) for exact, test in pairs)
                for z in ("p", "ttp")
            )
            text += f" (seen, where run exactly: {off_p:.{digits}f} and {off_ttp:.{digits}f})"
        told.append(text)
    note = f"Interpolation is off by at most, estimated for P and TTP: {'; '.join(told)}"
    notes.append(f"{note}.")
    return notes


def _minus_paper(findings: Sequence[Finding]) -> list[Estimate]:
    return [
        getattr(summary, measure)
        for finding in findings
        for summary in finding.minus_paper.values()
        for measure in ("p", "ttp")
        if finding.candidate.label != PAPER
    ]


def _given_up(findings: Sequence[Finding]) -> list[Estimate]:
    """Without those of answers that are the reference's own: their difference is 0 throughout."""
    return [
        one
        for finding in findings
        for own in finding.given_up.values()
        for one in own.values()
        if one.value
    ]


def note_on_the_most_common_answer(setting: Asked) -> str:
    """What exact match is worth: what each task's most common training answer scores on the test.

    Args:
      setting: the clients and the test instances.
    """
    name = "exact_match"
    score_I = most_common_scores(setting.clients, setting.instances, [name])[name]
    scores_CI = np.broadcast_to(score_I, (len(setting.clients), len(score_I)))
    found = summarize(scores_CI, setting.tasks(), span=METRICS[name].span)
    digits = METRICS[name].digits
    return (
        "Always giving a task's most common training answer scores, in exact match %, P "
        f"{found.p.value:.{digits}f} and TTP {found.ttp.value:.{digits}f}."
    )
