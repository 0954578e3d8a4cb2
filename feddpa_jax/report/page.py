"""One self-contained page: no script, nothing fetched."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from feddpa_jax.evaluate.interval import Estimate
from feddpa_jax.evaluate.metrics import METRICS, without_words_note
from feddpa_jax.files.escape import html
from feddpa_jax.report import result_tables, run_figures
from feddpa_jax.report.content import Run, metrics_of
from feddpa_jax.report.given_up_table import given_up_table
from feddpa_jax.report.plot_style import inline, to_svg
from feddpa_jax.report.result_tables import Table
from feddpa_jax.report.run_figures import Drawing
from feddpa_jax.report.scores import MEASURES
from feddpa_jax.report.task_table import task_table


@dataclasses.dataclass
class Page:
    """A page, and what it consists of.

    Attributes:
      html: the page.
      tables: in the page's order.
      drawings: likewise.
      svgs: each drawing as a file, at the first of its widths.
    """

    html: str = ""
    tables: list[Table] = dataclasses.field(default_factory=list)
    drawings: list[Drawing] = dataclasses.field(default_factory=list)
    svgs: list[str] = dataclasses.field(default_factory=list)

    def table(self, made: Table) -> Table:
        """A table that is kept with the page."""
        self.tables.append(made)
        return made

    def figure(self, drawing: Drawing) -> list[tuple[str, Markup]]:
        """A figure at each of its widths, by the class of its element."""
        self.drawings.append(drawing)
        shown = []
        for width in drawing.widths:
            svg = to_svg(drawing.make(width))
            if not shown:
                self.svgs.append(svg)
            prefix = f"f{len(self.drawings)}{'n' if shown else ''}-"
            shown.append(Markup(inline(svg, prefix)))
        kinds = ("wide", "narrow") if len(shown) == 2 else ("",)
        return list(zip(kinds, shown, strict=True))


def make_page(runs: Sequence[Run]) -> Page:
    """The page of some runs, and its parts."""
    page = Page()
    names = ", ".join(run.label for run in runs)
    evaluated = [run for run in runs if run.evaluation is not None]
    content = {
        "title": f"{'Run' if len(runs) == 1 else 'Runs'}: {names}",
        "lead": _lead(runs),
        "runs": runs,
        "cards": _cards(evaluated),
        "scores": _scores(evaluated, page),
        "evaluated": evaluated,
        "unevaluated": [r for r in runs if r.evaluation is None],
        "counts": _counts(evaluated),
        "differences": _differences(evaluated, page),
        "matrices": [_matrices(run) for run in evaluated],
        "weights": run_figures.instance_weights(runs),
        "comparisons": [_comparison(run, page) for run in runs if run.comparison is not None],
        "holds_out": any(run.config.get("data.validation") for run in runs),
        "training": _training(runs, page),
        "settings": _settings(runs, page),
    }
    page.html = (
        environment()
        .get_template("page.html.j2")
        .render(**content, draw=page.figure, interval=_interval)
    )
    return page


@functools.cache
def environment(*folders: Path) -> Environment:
    """Every value in a template is escaped, and hidden characters in it are made visible.

    Args:
      folders: with more templates.
    """
    return Environment(
        loader=FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(html(str(value))),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _interval(value: Estimate, digits: int) -> str:
    span = value.over_instances
    if not span.bounded:
        return "no interval"
    return f"{span.low:.{digits}f} to {span.high:.{digits}f} over test instances"


def _lead(runs: Sequence[Run]) -> str:
    first = runs[0].config
    places = ("model.path", "data.path")
    if any(run.config.get(name) != first.get(name) for run in runs for name in places):
        return "Runs of several models or data."
    clients = {len(run.evaluation.own_tasks) for run in runs if run.evaluation is not None}
    many = f"{count} clients, " if len(clients) == 1 and (count := clients.pop()) else ""
    return f"{many}{first.get('model.path')} on {first.get('data.path')}."


def _cards(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The main numbers: of a run what it answers with, of several the best."""
    cards = []
    for metric, told in metrics_of(runs).items():
        values = []
        for measure in MEASURES:
            found = [
                (by_metric[metric].estimates[measure], run)
                for run in runs
                if run.evaluation is not None
                and metric in (by_metric := run.evaluation.modes[run.evaluation.answers_with()])
                and by_metric[metric].estimates[measure].known
            ]
            if found:
                pick = min if told.lower_is_better else max
                best, run = pick(found, key=lambda one: one[0].value)
                whose = f"best: {run.label}" if len(runs) > 1 else f"{_mode(run)} mode"
                values.append((measure, best, whose))
        if values:
            cards.append({"metric": told, "values": values})
    return cards


def _mode(run: Run) -> str:
    return "" if run.evaluation is None else run.evaluation.answers_with()


def _scores(runs: Sequence[Run], page: Page) -> list[dict[str, Any]]:
    return [
        {
            "metric": told,
            "front": run_figures.front(runs, metric),
            "drawing": run_figures.score_intervals(runs, metric),
            "table": page.table(result_tables.score_table(runs, metric)),
            "tasks": None if by_task is None else page.table(by_task),
            "notes": _wordless(runs) if metric == "rouge1" else [],
        }
        for metric, told in metrics_of(runs).items()
        for by_task in [task_table(runs, metric)]
    ]


def _wordless(runs: Sequence[Run]) -> list[str]:
    counts = [0 if r.evaluation is None else r.evaluation.targets_without_words for r in runs]
    notes = map(without_words_note, counts)
    return [f"{run.label}: {note}" for run, note in zip(runs, notes, strict=True) if note]


def _counts(runs: Sequence[Run]) -> list[tuple[str, int]]:
    """How many test instances each run was evaluated on."""
    return [
        (run.label, len({index for _, index in run.evaluation.answers}))
        for run in runs
        if run.evaluation is not None
    ]


def _differences(runs: Sequence[Run], page: Page) -> dict[str, Any]:
    if len(runs) < 2:
        return {}
    table, apart = result_tables.paired_table(runs)
    drawn = [run_figures.paired_intervals(runs, metric) for metric in metrics_of(runs)]
    return {
        "table": None if table is None else page.table(table),
        "drawings": [drawing for drawing in drawn if drawing is not None],
        "apart": ", ".join(run.label for run in apart),
    }


def _matrices(run: Run) -> dict[str, Any]:
    """Client by task: of what the method answers with, and folded away all others."""
    evaluation = run.evaluation
    assert evaluation is not None
    main = (evaluation.answers_with(), evaluation.main_metric())
    others = [
        (mode, metric)
        for mode, by_metric in evaluation.modes.items()
        for metric in by_metric
        if (mode, metric) != main
    ]
    return {
        "label": run.label,
        "main": run_figures.matrix(run, evaluation, *main, is_half=False),
        "others": [run_figures.matrix(run, evaluation, *one, is_half=True) for one in others],
    }


def _comparison(run: Run, page: Page) -> dict[str, Any]:
    found = run.comparison
    assert found is not None
    losses = given_up_table(run.label, found)
    errors = []
    for name, own in found.interpolation_error.items():
        digits = METRICS[name].fine_digits
        errors.append(
            f"{METRICS[name].short} {own['P']:.{digits}f} in P and {own['TTP']:.{digits}f} in TTP"
        )
    return {
        "label": run.label,
        "found": found,
        "curves": run_figures.weight_curves(run, found),
        "rules": run_figures.rule_intervals(run, found),
        "table": page.table(result_tables.rule_table(run.label, found)),
        "given_up": None if losses is None else page.table(losses),
        "chosen_by": " and ".join(METRICS[name].short for name in found.chosen_by),
        "keep": ", the best TTP that loses nothing on P beyond its interval,"
        if found.keeps
        else "",
        "errors": "; ".join(errors),
        "weights": run_figures.rule_weights(run, found),
    }


def _training(runs: Sequence[Run], page: Page) -> dict[str, Any]:
    trained = [run for run in runs if run.rounds]
    return {
        "table": page.table(result_tables.cost_table(trained)) if trained else None,
        "drawings": [drawing for run in trained for drawing in run_figures.training_losses(run)],
    }


def _settings(runs: Sequence[Run], page: Page) -> dict[str, Any]:
    def fields(what: str, run: Run, content: Mapping[str, Any]) -> Table:
        caption = f"{what.capitalize()} of {run.label}"
        return result_tables.fields_table(f"{what}_{run.label}", caption, content)

    return {
        "differing": page.table(result_tables.difference_table(runs)) if len(runs) > 1 else None,
        "whole": [
            (
                run.label,
                fields("configuration", run, run.config),
                fields("environment", run, run.environment),
            )
            for run in runs
        ],
    }
