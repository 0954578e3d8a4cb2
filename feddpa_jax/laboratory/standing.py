"""Which rules differ from the paper's: many are tried, so the claim is corrected."""

from collections.abc import Mapping, Sequence

from feddpa_jax.evaluate.holm import holm_note, standing
from feddpa_jax.laboratory.findings import Finding

MEASURES = ("P", "TTP")
PAPER = "paper"


def rivals(findings: Sequence[Finding]) -> list[Finding]:
    """What is set against the paper's rule: neither itself nor a bound."""
    return [
        finding
        for finding in findings
        if not finding.candidate.is_bound and finding.candidate.label != PAPER
    ]


def standing_of(findings: Sequence[Finding], metric: str) -> Mapping[str, Mapping[str, str]]:
    """Over what each rival's difference to the paper's rule stands, by label and measure.

    P and TTP of all rivals in a metric are corrected together.
    """
    own = rivals(findings)
    both = [getattr(one.minus_paper[metric], m.lower()) for one in own for m in MEASURES]
    texts = iter(standing(both))
    return {one.candidate.label: {m: next(texts) for m in MEASURES} for one in own}


def describe_standing(findings: Sequence[Finding]) -> str:
    """What is said of it, in a sentence."""
    return f"In each metric, {holm_note(len(MEASURES) * len(rivals(findings)))}"
