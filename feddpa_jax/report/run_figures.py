"""The figures of a page: which values of which runs each of them shows."""

import dataclasses
from collections.abc import Callable, Sequence

from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.report import figures, heat_map
from feddpa_jax.report.comparison import Comparison
from feddpa_jax.report.content import Run, metrics_of
from feddpa_jax.report.paired import differences
from feddpa_jax.report.plot_style import NARROW, WIDE, Plot
from feddpa_jax.report.scatter import Point, p_against_ttp
from feddpa_jax.report.scores import MEASURES, Evaluation


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of a page.

    Attributes:
      name: of its files.
      caption: below it.
      make: the figure at a width in pixels.
      is_half: whether it takes half of the column, two side by side; on a phone, all of it.
    """

    name: str
    caption: str
    make: Callable[[float], Plot]
    is_half: bool = False

    @property
    def widths(self) -> tuple[float, ...]:
        """At which the page has it: the second one on a phone."""
        return (NARROW,) if self.is_half else (WIDE, NARROW)


def points_of(runs: Sequence[Run], metric: str) -> list[Point]:
    """A point for each run and mode; a colour for each run, or for each mode of a single one."""
    found = []
    for number, run in enumerate(runs):
        evaluation = run.evaluation
        if evaluation is None:
            continue
        main = evaluation.answers_with()
        # What the method answers with has the first colour.
        modes = [main, *(mode for mode in evaluation.modes if mode != main)]
        for mode, by_metric in evaluation.modes.items():
            if metric in by_metric:
                found.append(
                    Point(
                        name=mode if len(runs) == 1 else f"{run.label} {mode}",
                        mode=mode,
                        group=modes.index(mode) if len(runs) == 1 else number,
                        stands_out=mode == main,
                        p=by_metric[metric].estimates["P"].over_instances,
                        ttp=by_metric[metric].estimates["TTP"].over_instances,
                    )
                )
    return found


def front(runs: Sequence[Run], metric: str) -> Drawing | None:
    """P against TTP; None where no mode has a P."""
    points = points_of(runs, metric)
    if not any(point.p.known for point in points):
        return None
    told = metrics_of(runs)[metric]
    caption = (
        f"{told.heading}: up and to the right is better. Crosses: 95 % intervals over test "
        "instances, clients and seed fixed. Filled: what a method answers with."
    )
    if told.lower_is_better:
        caption += " Lower is better, so both axes run from high to low."
    return Drawing(
        f"p_against_ttp_{metric}",
        caption,
        lambda width: p_against_ttp(points, told, width),
    )


def score_intervals(runs: Sequence[Run], metric: str) -> Drawing:
    """P and TTP of every run and mode."""
    told = metrics_of(runs)[metric]
    rows = [
        figures.Row(point.name, point.stands_out, (point.p, point.ttp), point.group)
        for point in points_of(runs, metric)
    ]
    better = "Left" if told.lower_is_better else "Right"
    return Drawing(
        f"scores_{metric}",
        f"{better} is better. Bars: 95 % intervals over test instances, clients and seed fixed. An "
        "arrow: the value lies beyond the edge.",
        lambda width: figures.intervals(
            f"P and TTP by {told.title}", list(MEASURES.values()), rows, told, width=width
        ),
    )


def paired_intervals(runs: Sequence[Run], metric: str) -> Drawing | None:
    """What runs answer with, minus what the first one does; None where no run can be compared."""
    rows = []
    for number, run in enumerate(runs[1:], start=1):
        found = differences(run, runs[0])
        if metric in found:
            spans = (found[metric].p.over_instances, found[metric].ttp.over_instances)
            rows.append(figures.Row(run.label, True, spans, number))
    if not rows:
        return None
    told = metrics_of(runs)[metric]
    better = "left" if told.lower_is_better else "right"
    title = f"{told.heading}, minus {runs[0].label}"
    return Drawing(
        f"differences_{metric}",
        f"{title}. Bars: 95 % intervals over test instances, clients and seed fixed, of the "
        f"difference on the same instances; {better} of the line at 0 is better.",
        lambda width: figures.intervals(
            title, list(MEASURES.values()), rows, told, zero=True, width=width
        ),
    )


def matrix(run: Run, evaluation: Evaluation, mode: str, metric: str, *, is_half: bool) -> Drawing:
    """Client by task."""
    told = evaluation.told[metric]
    caption = f"{told.heading}, {run.label}, mode {mode}."
    if not is_half:
        caption += " The darker, the better in its column; framed: a client’s own task."
    return Drawing(
        f"clients_{run.label}_{mode}_{metric}",
        caption,
        lambda width: heat_map.matrix(
            f"{told.heading} of every client on every task, {run.label}, {mode}",
            evaluation.modes[mode][metric].matrix,
            evaluation.own_tasks,
            told,
            width=width,
        ),
        is_half,
    )


def instance_weights(runs: Sequence[Run]) -> Drawing | None:
    """Quantiles of the local adapter's weight in the mode "instance"."""
    rows = [
        (run.label, run.evaluation.weights)
        for run in runs
        if run.evaluation is not None and run.evaluation.weights
    ]
    if not rows:
        return None
    return Drawing(
        "weights",
        "Boxes: the middle half of all instances; whiskers: 90 % of them; gap: the median.",
        lambda width: figures.weights(
            "Local weight on own and on foreign tasks", rows, width=width
        ),
    )


def weight_curves(run: Run, comparison: Comparison) -> list[Drawing]:
    """By metric: scores of all answers at one mixing weight."""
    drawn = []
    for metric, sides in comparison.curves.items():
        told = METRICS[metric]
        drawn.append(
            Drawing(
                f"curves_{run.label}_{metric}",
                f"{told.heading} of all answers at one mixing weight: 0 is the global adapter, 1 "
                "the local one. A good rule finds each side’s best weight. Bands: 95 % intervals "
                "over test instances.",
                lambda width, told=told, sides=sides: figures.curves(
                    f"{told.heading} against the weight of the local adapter",
                    told,
                    comparison.mix_weights,
                    {
                        side: [point.over_instances for point in points]
                        for side, points in sides.items()
                    },
                    width=width,
                ),
                is_half=True,
            )
        )
    return drawn


def rule_intervals(run: Run, comparison: Comparison) -> Drawing:
    """P and TTP of every rule by NLL."""
    rows = [
        figures.Row(
            rule.title,
            bool(rule.exact),
            tuple(rule.test["nll"][measure].over_instances for measure in MEASURES),
            0 if rule.exact else 1,
        )
        for rule in comparison.rules
    ]
    return Drawing(
        f"rules_{run.label}",
        "NLL of every rule at the setting that was chosen; left is better. "
        "Bars: 95 % intervals over test instances. Blue: run again exactly. Bounds know what no "
        "client knows beforehand.",
        lambda width: figures.intervals(
            f"Weighting rules by NLL, {run.label}",
            list(MEASURES.values()),
            rows,
            METRICS["nll"],
            width=width,
        ),
    )


def rule_weights(run: Run, comparison: Comparison) -> Drawing:
    """Quantiles of the local adapter's weight, by rule."""
    rows = [(rule.title, rule.weights) for rule in comparison.rules]
    return Drawing(
        f"weights_by_rule_{run.label}",
        "Quantiles as above.",
        lambda width: figures.weights(f"Local weight by rule, {run.label}", rows, width=width),
    )


def training_losses(run: Run) -> list[Drawing]:
    """By phase: the clients' mean losses over the rounds."""
    phases = list(dict.fromkeys(phase for done in run.rounds for phase in done.losses))
    drawn = []
    for phase in phases:
        by_client: dict[str, list[tuple[float, float]]] = {}
        for done in run.rounds:
            for client, loss in done.losses.get(phase, {}).items():
                by_client.setdefault(client, []).append((done.number + 1, loss))
        if by_client:
            drawn.append(
                Drawing(
                    f"training_{run.label}_{phase}",
                    f"{run.label}, {phase} phase: thin lines are clients, the thick one their "
                    "mean.",
                    lambda width, phase=phase, by_client=by_client: figures.losses(
                        f"Training loss in the {phase} phase, {run.label}", by_client, width=width
                    ),
                    is_half=True,
                )
            )
    return drawn
