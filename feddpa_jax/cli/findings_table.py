"""What the laboratory found on the screen."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.laboratory.findings import Finding, Summaries, describe
from feddpa_jax.laboratory.grid import CURVE_METRICS
from feddpa_jax.laboratory.standing import standing_of


def _values(found: Summaries) -> list[str]:
    return [
        f"{value.value:.{METRICS[name].fine_digits}f}"
        for name in CURVE_METRICS
        for value in (found[name].p, found[name].ttp)
    ]


def render(findings: Sequence[Finding], notes: Sequence[str]) -> Group:
    """The findings as people read them, and what is to be known about them."""
    table = Table(title="Weighting rules on the test instances", title_justify="left")
    table.add_column("rule, and its setting", overflow="fold", min_width=30)
    for name in (
        "NLL\nP",
        "\nTTP",
        "exact\nP",
        "match %\nTTP",
        "TTP minus the paper's rule's:\nNLL, exact match %",
        "stands\nover",
    ):
        table.add_column(name, justify="right")
    over = {name: standing_of(findings, name) for name in CURVE_METRICS}
    for finding in findings:
        candidate = finding.candidate
        rule = "" if candidate.settings is None else candidate.settings.rule
        # The label of a rule at its best names the rule.
        title = candidate.label if rule in candidate.label else f"{candidate.label}: {rule}"
        said = f"{title} ({describe(candidate.settings)})" if rule else candidate.label
        against = "\n".join(
            METRICS[name].cell(finding.minus_paper[name].ttp, fine=True) for name in CURVE_METRICS
        )
        stands = "\n".join(
            over[name].get(candidate.label, {}).get("TTP", "") for name in CURVE_METRICS
        )
        table.add_row(said, *_values(finding.test), against, stands)
        if finding.exact is not None:
            rouge = finding.exact.get("rouge1")
            answers = (
                "" if rouge is None else f"ROUGE-1 P {rouge.p.value:.1f}, TTP {rouge.ttp.value:.1f}"
            )
            if set(CURVE_METRICS) <= finding.exact.keys():
                table.add_row("  run exactly", *_values(finding.exact), answers, "")
    return Group(table, "\n".join(notes))
