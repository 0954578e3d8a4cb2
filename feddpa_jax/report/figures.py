"""What is drawn and tabled, from runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.report.content import Run, differing
from feddpa_jax.report.paired import differences
from feddpa_jax.report.svg import Line, Span, boxes, heat_map, intervals, lines
from feddpa_jax.report.tables import Table

_MEASURES = {"P": "P: own task", "TTP": "TTP: all tasks"}


def cell(value: Mapping[str, float | None] | None, metric: str, digits: int | None = None) -> str:
    """A value with its interval, to the metric's usual digits or so many.

    >>> cell({"value": 0.5, "low": 0.25, "high": 0.75}, "nll")
    '0.50 [0.25, 0.75]'
    """
    span = to_span(value)
    if span is None:
        return "–"
    digits = METRICS[metric].digits if digits is None else digits
    return "{0:.{3}f} [{1:.{3}f}, {2:.{3}f}]".format(*span, digits)


def to_span(value: Mapping[str, float | None] | None) -> Span | None:
    """Value, low and high; None where there is none."""
    if value is None:
        return None
    middle, low, high = value["value"], value["low"], value["high"]
    return None if middle is None or low is None or high is None else (middle, low, high)


def metrics_of(runs: Sequence[Run]) -> list[str]:
    """The metrics that any run was evaluated by."""
    measured = {m for run in runs for mode in run.modes() for m in run.metrics(mode)}
    return [metric for metric in METRICS if metric in measured]


def score_table(runs: Sequence[Run], metric: str) -> Table:
    """P and TTP of every run and mode."""
    rows, marked = [], set()
    for run in runs:
        for mode in run.modes():
            if mode == run.answers_with():
                marked.add(len(rows))
            values = [cell(run.value(mode, metric, measure), metric) for measure in _MEASURES]
            rows.append([run.label, mode, *values])
    told = METRICS[metric]
    caption = f"{told.heading} ({told.better} is better), with 95 % bootstrap intervals"
    columns = ["run", "mode", *_MEASURES.values()]
    return Table(f"scores_{metric}", caption, columns, rows, 2, frozenset(marked))


def paired_table(runs: Sequence[Run], metrics: Sequence[str]) -> tuple[Table | None, Sequence[Run]]:
    """What runs answer with, against the first run; and the runs that cannot be set against it."""
    rows, apart = [], []
    for run in runs[1:]:
        found = differences(run, runs[0])
        if not found:
            apart.append(run)
        else:
            spans = [
                dataclasses.asdict(getattr(found[metric], measure.lower()))
                if metric in found
                else None
                for metric in metrics
                for measure in _MEASURES
            ]
            of = [metric for metric in metrics for _ in _MEASURES]
            rows.append([f"{run.label}, {run.answers_with()}", *map(cell, spans, of)])
    if not rows:
        return None, apart
    columns = [f"{METRICS[m].title}: {measure}" for m in metrics for measure in _MEASURES]
    caption = (
        f"Minus {runs[0].label}, {runs[0].answers_with()}, with 95 % bootstrap intervals of the "
        "difference on the same test instances"
    )
    return Table("differences_of_scores", caption, ["run", *columns], rows), apart


def score_plot(runs: Sequence[Run], metric: str) -> str:
    """The same as a plot."""
    rows = []
    for run in runs:
        for mode in run.modes():
            # The bare model is far off and would press the others together.
            if mode == "base" and len(run.modes()) > 1:
                continue
            spans = [to_span(run.value(mode, metric, measure)) for measure in _MEASURES]
            name = mode if len(runs) == 1 else f"{run.label} {mode}"
            rows.append((name, mode == run.answers_with(), spans))
    return intervals(f"P and TTP by {METRICS[metric].title}", list(_MEASURES.values()), rows)


def heat(run: Run, mode: str, metric: str) -> str:
    """Client by task."""
    assert run.summary is not None
    matrix: dict[str, dict[str, float]] = run.summary["modes"][mode][metric]["matrix"]
    own = run.summary.get("own_tasks", {})
    tasks = run.summary["tasks"]
    return heat_map(
        f"{METRICS[metric].heading} of every client on every task, {run.label}, {mode}",
        tasks,
        list(matrix),
        [[row[task] for task in tasks] for row in matrix.values()],
        [[task in own.get(client, ()) for task in tasks] for client in matrix],
        lower_is_better=METRICS[metric].lower_is_better,
    )


def training(run: Run) -> list[tuple[str, str]]:
    """For every phase its name, and the clients' mean losses over the rounds."""
    phases = list(dict.fromkeys(phase for line in run.rounds for phase in line["phases"]))
    found = []
    for phase in phases:
        by_client: dict[str, list[tuple[float, float]]] = {}
        means = []
        for line in run.rounds:
            losses = {c: own["mean"] for c, own in line["phases"].get(phase, {}).items()}
            for client, loss in losses.items():
                by_client.setdefault(client, []).append((line["round"] + 1, loss))
            if losses:
                means.append((line["round"] + 1, sum(losses.values()) / len(losses)))
        drawn = [Line("", points, 0, is_thin=True) for points in by_client.values()]
        drawn.append(Line("mean", means, 0))
        title = f"Training loss in the {phase} phase, {run.label}"
        found.append((phase, lines(title, "round", "loss, nats a token", drawn, whole_x=True)))
    return found


def weight_plot(rows: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> str:
    """Quantiles of the local adapter's weight."""
    return boxes("Local weight on own and on foreign tasks", "weight of the local adapter", rows)


def curve_plot(laboratory: Mapping[str, Any], metric: str) -> str:
    """A score against the mixing weight, on own and on foreign tasks."""
    weights = laboratory["mix_weights"]
    drawn = [
        Line(
            f"{side} tasks",
            [(w, point["value"]) for w, point in zip(weights, points, strict=True)],
            series,
            band=[(point["low"], point["high"]) for point in points],
        )
        for series, (side, points) in enumerate(laboratory["curves"][metric].items())
    ]
    title = f"{METRICS[metric].heading} against the weight of the local adapter"
    return lines(title, "weight of the local adapter", METRICS[metric].heading, drawn)


def rule_name(rule: Mapping[str, Any]) -> str:
    """A rule's short name in tables and plots."""
    label, name = rule.get("label") or "", rule["name"]
    return label if not label or name in label else f"{label} ({name})"


def rule_table(run: Run) -> Table:
    """What `feddpa weigh` found: interpolated scores on the test, beside the exact ones."""
    assert run.laboratory is not None

    def fine(found: Mapping[str, Any], metric: str, measure: str) -> str:
        return cell(found[metric][measure], metric, METRICS[metric].fine_digits)

    rows, marked = [], set()
    for rule in run.laboratory["rules"]:
        if rule.get("exact"):
            marked.add(len(rows))
        cells = [fine(rule["test"], m, z) for m in ("nll", "exact_match") for z in _MEASURES]
        exact = [
            fine(rule["exact"], m, z) if rule.get("exact") and m in rule["exact"] else ""
            for m in ("nll", "exact_match", "rouge1")
            for z in _MEASURES
        ]
        against = [
            fine(rule["minus_paper"], m, z) for m in ("nll", "exact_match") for z in _MEASURES
        ]
        words = rule["words"] or "a bound, no rule"
        rows.append([rule_name(rule), words, *cells, *against, *exact])
    columns = [
        *("rule", "setting"),
        *(f"{name}: {z}" for name in ("NLL", "exact match") for z in _MEASURES),
        *(f"{name}: {z}, minus the paper's" for name in ("NLL", "exact match") for z in _MEASURES),
        *(f"{m}: {z}, run exactly" for m in ("NLL", "exact match", "ROUGE-1") for z in _MEASURES),
    ]
    caption = f"Weighting rules on the test instances, {run.label}; chosen on held-out examples"
    return Table(f"rules_{run.label}", caption, columns, rows, 2, frozenset(marked))


def rule_plot(run: Run) -> str:
    """P and TTP of every rule by NLL."""
    assert run.laboratory is not None
    rows = []
    for rule in run.laboratory["rules"]:
        spans = [to_span(rule["test"]["nll"][measure]) for measure in _MEASURES]
        rows.append((rule_name(rule), bool(rule.get("exact")), spans))
    title = f"Weighting rules by NLL, {run.label}"
    return intervals(title, list(_MEASURES.values()), rows, same_axis=False)


def cost_table(runs: Sequence[Run]) -> Table:
    """Speed and communication."""
    rows = []
    for run in runs:
        lines_ = run.rounds
        real = sum(line["real_tokens"] for line in lines_)
        computed = sum(line["computed_tokens"] for line in lines_)
        seconds = sum(line["seconds"] for line in lines_)
        down = sum(line["client_bytes_received"] for line in lines_)
        up = sum(line["client_bytes_sent"] for line in lines_)
        rows.append(
            [
                run.label,
                str(len(lines_)),
                f"{real:,}",
                f"{100 * real / computed:.0f}" if computed else "–",
                f"{seconds:,.0f}",
                f"{real / seconds:,.0f}" if seconds else "–",
                f"{down / 1e6:.2f}",
                f"{up / 1e6:.2f}",
            ]
        )
    columns = [
        *("run", "lines", "real tokens", "real, % of computed", "seconds", "real tokens a second"),
        *("MB received a client", "MB sent a client"),
    ]
    caption = "Training: work, speed, and what one client would exchange with the server in all"
    return Table("training", caption, columns, rows)


def difference_table(runs: Sequence[Run]) -> Table:
    """The configuration's fields in which the runs differ."""
    rows = [[n, *(show(run.config.get(n)) for run in runs)] for n in differing(runs)]
    columns = ["field", *(run.label for run in runs)]
    return Table("differences", "Where the configurations differ", columns, rows, len(columns))


def fields_table(run: Run, fields: Mapping[str, Any], what: str) -> Table:
    """All fields of a run's configuration or environment."""
    rows = [[name, show(value)] for name, value in fields.items()]
    return Table(
        f"{what}_{run.label}", f"{what.capitalize()} of {run.label}", ["field", "value"], rows, 2
    )


def show(value: Any) -> str:
    """A field's value as text."""
    if isinstance(value, list):
        return ", ".join(map(show, value))
    return "–" if value is None else str(value)
