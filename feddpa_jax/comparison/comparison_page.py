"""A comparison as one self-contained page, with tables and figures beside it."""

import functools
from pathlib import Path
from typing import Any

from feddpa_jax.comparison.compared import Comparison
from feddpa_jax.comparison.comparison_tables import (
    common_settings,
    costs_table,
    differences_table,
    scores_table,
    seeds_table,
    settings_table,
)
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.files.escape import csv_text
from feddpa_jax.report import figures
from feddpa_jax.report.page import Page, environment
from feddpa_jax.report.page_files import Written, write_made
from feddpa_jax.report.result_tables import Table, fields_table
from feddpa_jax.report.run_figures import Drawing
from feddpa_jax.report.scatter import Point, p_against_ttp
from feddpa_jax.report.scores import MEASURES

PAGE, TABLE = "report.html", "table.csv"


def write_comparison(found: Comparison, folder: Path) -> Written:
    """Writes report.html, report_tables/, report_figures/ and table.csv."""
    page = make_comparison_page(found)
    frame = found.to_pandas()
    safe = frame.map(lambda value: csv_text(value) if isinstance(value, str) else value)
    table = safe.to_csv(index=False, lineterminator="\n")
    return write_made(page, folder / PAGE, None, (), beside={TABLE: table})


def make_comparison_page(found: Comparison) -> Page:
    """The page of a comparison, and its parts."""
    page = Page()
    first = found.runs[0].config
    clients = len(found.runs[0].scores.clients)
    settings = settings_table(found)
    content: dict[str, Any] = {
        "title": f"Comparison: {', '.join(found.methods)}",
        "lead": f"{clients} clients, {first.model.path} on {first.data.path}.",
        "notes": found.notes,
        "metrics": [
            {
                "told": METRICS.find(metric),
                "front": _front(found, metric),
                "scores": _intervals(found, metric),
                "table": page.table(scores_table(found, metric)),
                "differences": _differences(found, metric),
                "minus": _kept(page, differences_table(found, metric)),
            }
            for metric in found.metrics
        ],
        "costs": page.table(costs_table(found)),
        "seeds": page.table(seeds_table(found)),
        "settings": page.table(settings) if settings.rows() else None,
        "common": fields_table("common_settings", "What all share", common_settings(found)),
    }
    template = environment(Path(__file__).parent).get_template("comparison.html.j2")
    page.html = template.render(**content, draw=page.figure)
    return page


def _kept(page: Page, table: Table | None) -> Table | None:
    return None if table is None else page.table(table)


def _points(found: Comparison, metric: str) -> list[Point]:
    group = {method: number for number, method in enumerate(found.methods)}
    return [
        Point(
            name=row.method if row.answers else f"{row.method} {row.mode}",
            mode=row.mode,
            group=group[row.method],
            stands_out=row.answers,
            p=row.scores[metric]["P"].over_instances,
            ttp=row.scores[metric]["TTP"].over_instances,
        )
        for row in found.rows
    ]


def _front(found: Comparison, metric: str) -> Drawing | None:
    """P against TTP; None where no method has a P."""
    points, told = _points(found, metric), METRICS.find(metric)
    if not any(point.p.known for point in points):
        return None
    caption = (
        f"{told.heading}: up and to the right is better. Crosses: 95 % intervals over test "
        "instances, clients and seeds fixed, of the mean over seeds. Filled: what a method answers "
        "with."
    )
    if told.lower_is_better:
        caption += " Lower is better, so both axes run from high to low."
    draw = functools.partial(p_against_ttp, points, told)
    return Drawing(f"p_against_ttp_{metric}", caption, draw)


def _intervals(found: Comparison, metric: str) -> Drawing:
    told = METRICS.find(metric)
    rows = [
        figures.Row(point.name, point.stands_out, (point.p, point.ttp), point.group)
        for point in _points(found, metric)
    ]
    return _drawn(f"scores_{metric}", f"P and TTP by {told.title}", rows, metric, zero=False)


def _differences(found: Comparison, metric: str) -> Drawing | None:
    group = {method: number for number, method in enumerate(found.methods)}
    rows = [
        figures.Row(
            row.method if row.answers else f"{row.method} {row.mode}",
            row.answers,
            tuple(row.minus[metric][measure].over_instances for measure in MEASURES),
            group[row.method],
        )
        for row in found.rows
        if row.minus
    ]
    if not rows:
        return None
    title = f"{METRICS.find(metric).heading}, minus {found.against}"
    return _drawn(f"differences_{metric}", title, rows, metric, zero=True)


def _drawn(name: str, title: str, rows: list[figures.Row], metric: str, *, zero: bool) -> Drawing:
    told = METRICS.find(metric)
    better = "left" if told.lower_is_better else "right"
    caption = (
        "Bars: 95 % intervals over test instances, clients and seeds fixed, of the mean over "
        f"seeds; {better} is better."
    )
    if zero:
        caption += " Which differences stand among so many, the table says."
    headings = list(MEASURES.values())
    return Drawing(
        name,
        caption,
        lambda width: figures.intervals(title, headings, rows, told, zero=zero, width=width),
    )
