"""The tables of a comparison: a metric's scores and differences, costs, single seeds, settings."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from feddpa_jax.comparison.compared import Comparison, Estimates, Row
from feddpa_jax.config import dotted
from feddpa_jax.evaluate.interval import Estimate
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.report.result_tables import Column, Table, standing_columns
from feddpa_jax.report.scores import MEASURES, MOST_COMMON


def scores_table(found: Comparison, metric: str) -> Table:
    """P and TTP of every method and mode."""
    told = METRICS.find(metric)
    title = f"{told.heading} ({told.better} is better)"
    table = _estimates(f"scores_{metric}", title, found.rows, lambda row: row.scores, metric)
    constant = found.most_common(metric)
    if constant is None:
        return table
    last = {"method": "–", "mode": MOST_COMMON}
    last |= {heading: constant[measure] for measure, heading in MEASURES.items()}
    columns = [
        dataclasses.replace(column, values=[*column.values, last.get(column.heading)])
        for column in table.columns
    ]
    return dataclasses.replace(table, columns=columns)


def differences_table(found: Comparison, metric: str) -> Table | None:
    """Paired differences to the method that is set against; None of that method alone."""
    rows = [row for row in found.rows if row.minus]
    if not rows:
        return None
    title = f"{METRICS.find(metric).heading}, minus {found.against}"
    return _estimates(f"differences_{metric}", title, rows, lambda row: row.minus, metric)


def _estimates(
    name: str,
    title: str,
    rows: Sequence[Row],
    part: Callable[[Row], Estimates],
    metric: str,
) -> Table:
    """P and TTP with intervals over instances and clients, and over seeds, if there are several.

    Differences are told with what they stand over, among all of the table.
    """
    told = METRICS.find(metric)
    digits = told.fine_digits if name.startswith("differences") else told.digits
    columns = [
        Column("method", [row.method for row in rows]),
        Column("mode", [f"{row.mode} *" if row.answers else row.mode for row in rows]),
    ]
    values = {measure: [part(row)[metric][measure] for row in rows] for measure in MEASURES}
    over = standing_columns(values) if name.startswith("differences") else {}
    for measure, heading in MEASURES.items():
        own = values[measure]
        columns.append(Column(heading, own, lambda value: Estimate.text(value, digits)))
        if any(value.over_seeds is not None for value in own):
            halves = [value.half() for value in own]
            columns.append(Column("± seeds", halves, f"{{:.{digits}f}}".format))
        if over:
            columns.append(over[measure])
    marked = frozenset(place for place, row in enumerate(rows) if row.answers)
    return Table(name, title, columns, marked)


def costs_table(found: Comparison) -> Table:
    """Work, time and traffic of a run of each method."""
    costs = found.costs
    mean = ", means over seeds" if len(found.seeds) > 1 else ""

    def whole(value: float) -> str:
        return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"

    first = found.methods[0]
    return Table(
        "costs",
        f"Work, time and traffic of a run{mean}",
        [
            Column("method", [cost.method for cost in costs]),
            Column("rounds", [cost.rounds for cost in costs], whole),
            Column("updates", [cost.updates for cost in costs], whole),
            Column("tokens", [cost.tokens for cost in costs], whole),
            Column("seconds", [cost.seconds for cost in costs], "{:,.0f}".format),
            Column("MB received a client", [c.bytes_received / 1e6 for c in costs], _megabytes),
            Column("MB sent a client", [c.bytes_sent / 1e6 for c in costs], _megabytes),
            Column(f"updates, % more than {first}", [100 * c.updates_off for c in costs], _percent),
            Column(f"tokens, % more than {first}", [100 * c.tokens_off for c in costs], _percent),
        ],
    )


def _megabytes(value: float) -> str:
    return f"{value:.3f}" if 0 < value < 1 else f"{value:,.2f}"


def _percent(value: float) -> str:
    return "0" if abs(value) < 0.05 else f"{value:+.1f}"


def seeds_table(found: Comparison) -> Table:
    """Every run: what the method answers with, seed by seed."""
    rows = [(row, place) for row in found.rows if row.answers for place in range(len(found.seeds))]
    folders = [found.of(row.method)[place].folder for row, place in rows]
    columns = [
        Column("method", [row.method for row, _ in rows]),
        Column("seed", [found.seeds[place] for _, place in rows]),
    ]
    for metric in found.metrics:
        told = METRICS.find(metric)
        for measure in MEASURES:
            values = [row.scores[metric][measure].by_seed[place] for row, place in rows]
            show = f"{{:.{told.digits}f}}".format
            columns.append(Column(f"{told.short}: {measure}", values, show))
    if any(folder is not None for folder in folders):
        columns.append(Column("run folder", [str(folder) for folder in folders]))
    return Table("seeds", "Single runs: what each method answers with", columns)


def settings_table(found: Comparison) -> Table:
    """The fields in which the methods' configurations differ."""
    fields = [dotted(found.of(method)[0].config) for method in found.methods]
    names = [name for name in fields[0] if len({_text(own[name]) for own in fields}) > 1]
    columns = [
        Column(method, [_text(own[name]) for name in names])
        for method, own in zip(found.methods, fields, strict=True)
    ]
    title = "Where the methods' settings differ"
    return Table("settings", title, [Column("field", names), *columns])


def common_settings(found: Comparison) -> dict[str, Any]:
    """The fields that all methods share."""
    fields = [dotted(found.of(method)[0].config) for method in found.methods]
    return {
        name: _text(value)
        for name, value in fields[0].items()
        if name != "seed" and len({_text(own[name]) for own in fields}) == 1
    }


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(inner)}" for name, inner in value.items()) or "–"
    return str(value)
