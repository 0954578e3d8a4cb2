"""What the laboratory found on the screen."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.laboratory.findings import Finding, Summaries, describe
from feddpa_jax.laboratory.given_up import References
from feddpa_jax.laboratory.grid import CURVE_METRICS
from feddpa_jax.laboratory.standing import standing_of


def _values(found: Summaries) -> list[str]:
    return [
        f"{value.value:.{METRICS[name].fine_digits}f}"
        for name in CURVE_METRICS
        for value in (found[name].p, found[name].ttp)
    ]


def render(
    findings: Sequence[Finding], notes: Sequence[str], references: References | None = None
) -> Group:
    """The findings as people read them, and what is to be known about them.

    Args:
      findings: with their scores.
      notes: sentences below the tables.
      references: what is given up is the difference to; None where that is not shown.
    """
    tables = [_scores(findings)]
    if references is not None:
        tables.append(_losses(findings, references))
    if any(finding.separation for finding in findings):
        tables.append(_weights(findings))
    return Group(*tables, "\n".join(notes))


def _title(finding: Finding) -> str:
    """A finding without its setting; the label of a rule at its best names the rule."""
    candidate = finding.candidate
    rule = "" if candidate.settings is None else candidate.settings.rule
    return candidate.label if rule in candidate.label else f"{candidate.label}: {rule}"


def _losses(findings: Sequence[Finding], references: References) -> Table:
    """P and TTP minus those of the references, with their intervals."""
    words = references.words()
    table = Table(title="What is given up, on the test instances", title_justify="left")
    table.add_column("rule", overflow="fold")
    for measure in words:
        for name in CURVE_METRICS:
            unit = METRICS[name].title
            table.add_column(f"{measure} minus that of\n{words[measure]}:\n{unit}", justify="right")
    for finding in findings:
        cells = [
            METRICS[name].cell(finding.given_up[name][measure], fine=True)
            for measure in words
            for name in CURVE_METRICS
        ]
        table.add_row(_title(finding), *cells)
    return table


def _weights(findings: Sequence[Finding]) -> Table:
    """How weights tell own instances from foreign ones."""
    table = Table(title="Local weights of the test instances, means", title_justify="left")
    table.add_column("rule", overflow="fold")
    for name in ("own", "foreign", "AUC"):
        table.add_column(name, justify="right")
    for finding in findings:
        if finding.separation is not None:
            table.add_row(_title(finding), *finding.separation.cells())
    return table


def _scores(findings: Sequence[Finding]) -> Table:
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
        title = _title(finding)
        said = title if candidate.is_bound else f"{title} ({describe(candidate.settings)})"
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
    return table
