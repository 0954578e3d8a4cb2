"""A comparison of methods on the screen."""

from rich.console import Group
from rich.table import Table

from feddpa_jax.comparison.compared import Comparison, Estimates
from feddpa_jax.comparison.comparison_tables import costs_table
from feddpa_jax.comparison.estimates import MEASURES
from feddpa_jax.evaluate.metrics import METRICS


def render(found: Comparison) -> Group:
    """A table a metric, one of the costs, and what the intervals are."""
    parts = [_metric(found, metric) for metric in found.metrics]
    costs = costs_table(found)
    table = Table(title=costs.caption, title_justify="left")
    for place, name in enumerate(costs.headings()):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in costs.rows():
        table.add_row(*row)
    return Group(*parts, table, "\n".join(found.notes))


def _metric(found: Comparison, metric: str) -> Table:
    told = METRICS.find(metric)
    table = Table(title=f"{told.title} ({told.better} is better)", title_justify="left")
    table.add_column("method", overflow="fold")
    table.add_column("mode")
    differs = any(row.minus for row in found.rows)
    for said in ("", f" minus {found.against}") if differs else ("",):
        for measure in MEASURES:
            table.add_column(f"{measure}{said}", justify="right")

    def cells(values: Estimates, digits: int) -> list[str]:
        own = values.get(metric)
        return ["" if own is None else own[measure].text(digits) for measure in MEASURES]

    for row in found.rows:
        table.add_row(
            row.method,
            f"{row.mode} *" if row.answers else row.mode,
            *cells(row.scores, told.digits),
            *(cells(row.minus, told.fine_digits) if differs else ()),
        )
    return table
