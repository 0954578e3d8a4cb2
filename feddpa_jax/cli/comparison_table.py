"""A comparison of methods on the screen."""

from rich.console import Group
from rich.table import Table

from feddpa_jax.comparison.compared import Comparison
from feddpa_jax.comparison.comparison_tables import costs_table
from feddpa_jax.comparison.estimates import MEASURES
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.report.result_tables import standing_columns


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
    for measure in MEASURES:
        table.add_column(measure, justify="right")
    for measure in MEASURES if differs else ():
        table.add_column(f"{measure} minus {found.against}", justify="right")
        table.add_column("stands over")
    minus = {
        m: [row.minus[metric][m] if row.minus else None for row in found.rows] for m in MEASURES
    }
    over = standing_columns(minus)
    for place, row in enumerate(found.rows):
        cells = [row.scores[metric][measure].text(told.digits) for measure in MEASURES]
        for measure in MEASURES if differs else ():
            difference = minus[measure][place]
            cells.append("" if difference is None else difference.text(told.fine_digits))
            cells.append(over[measure].texts()[place])
        table.add_row(row.method, f"{row.mode} *" if row.answers else row.mode, *cells)
    return table
