"""Figures of runs, from values: each function returns a matplotlib figure."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from feddpa_jax.evaluate.interval import Interval
from feddpa_jax.evaluate.metrics import Metric
from feddpa_jax.report.plot_style import (
    MUTE,
    NARROW,
    PAGE,
    POINT,
    SERIES,
    SMALL,
    WIDE,
    Plot,
    fitted,
    new_plot,
    number,
    style,
    text_width,
)
from feddpa_jax.report.scatter import extent, limits, spread, within_reach

_ROW = 26.0


class Row(NamedTuple):
    """A row of intervals.

    Attributes:
      name: at its left.
      stands_out: whether its name is bold and its points are filled.
      spans: a value for each panel.
      group: gives the colour.
    """

    name: str
    stands_out: bool
    spans: Sequence[Interval]
    group: int = 0

    @property
    def colour(self) -> str:
        """Of its points."""
        return SERIES[self.group % len(SERIES)]


def intervals(
    title: str,
    panels: Sequence[str],
    rows: Sequence[Row],
    metric: Metric,
    *,
    zero: bool = False,
    width: float = WIDE,
) -> Plot:
    """Values with intervals: a row each, a panel for each of their values.

    A value far from the best is told at the edge of its panel, where showing it would press the
    others together.

    Args:
      title: for those who cannot see it.
      panels: their headings.
      rows: what is shown.
      metric: of the values.
      zero: whether they are differences, of which the line at 0 is drawn.
      width: in pixels; in a narrow figure the panels stand below each other.
    """
    small = width < 1.5 * NARROW
    most = (0.48 if small else 0.28) * width
    names = min(max(text_width(row.name, bold=row.stands_out) for row in rows) + 14, most)
    side_by_side = 1 if small else len(panels)
    panel = (width - names - 24.0 * side_by_side) / side_by_side
    body = _ROW * len(rows)
    each = 26 + body + 34
    with style():
        figure = new_plot(title, width, each * len(panels) / side_by_side)
        for p, heading in enumerate(panels):
            left = names + (p % side_by_side) * (panel + 24.0)
            top = 26 + (p // side_by_side) * each
            _interval_panel(figure, (left, top, panel, body), heading, rows, p, metric, zero)
            if p % side_by_side:
                continue
            for r, row in enumerate(rows):
                figure.write(
                    names - 12,
                    top + _ROW * (r + 0.5),
                    fitted(row.name, names - 12, bold=row.stands_out),
                    ha="right",
                    va="center",
                    weight="bold" if row.stands_out else "normal",
                )
    return figure


def _interval_panel(
    figure: Plot,
    place: tuple[float, float, float, float],
    heading: str,
    rows: Sequence[Row],
    panel: int,
    metric: Metric,
    zero: bool,
) -> None:
    left, top, width, _ = place
    axes = figure.place(*place)
    figure.write(left, top - 12, fitted(heading, width), weight="bold")
    known = [(r, row) for r, row in enumerate(rows) if row.spans[panel].known]
    if not known:
        axes.set_axis_off()
        return
    spans = [row.spans[panel] for _, row in known]
    shown = set(range(len(spans)))
    if not zero:
        near = within_reach(spans, lower_is_better=metric.lower_is_better)
        shown = _worth_it(spans, {*near, *(i for i, (_, r) in enumerate(known) if r.stands_out)})
    ends = [e for i in shown for e in spans[i].ends]
    low, high = limits([*ends, 0.0] if zero else ends, 0.05)
    # Room at the edge for values that lie beyond it.
    room = 62 / width * (high - low)
    low -= room * any(span.value < low for span in spans)
    high += room * any(span.value > high for span in spans)
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows), 0)
    axes.yaxis.set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: number(value)))
    if zero:
        axes.axvline(0.0, color=MUTE, linewidth=POINT)
    for i, (r, row) in enumerate(known):
        if i in shown:
            _mark(axes, spans[i], r + 0.5, row)
        else:
            told = f"{spans[i].value:.{metric.digits}f}"
            above = spans[i].value > high
            at, side = (left + width - 4, "right") if above else (left + 4, "left")
            text = f"{told} →" if above else f"← {told}"
            said = {"color": row.colour, "fontsize": SMALL * POINT}
            figure.write(at, top + _ROW * (r + 0.5), text, ha=side, va="center", **said)


def _mark(axes: Axes, span: Interval, y: float, row: Row) -> None:
    axes.plot(span.ends, [y, y], color=row.colour, linewidth=2.2 * POINT)
    axes.plot(
        [span.value],
        [y],
        "o",
        color=row.colour,
        markersize=(8.5 if row.stands_out else 7.5) * POINT,
        markerfacecolor=row.colour if row.stands_out else PAGE,
        markeredgecolor=row.colour,
        markeredgewidth=1.8 * POINT,
    )


def _worth_it(spans: Sequence[Interval], near: set[int]) -> set[int]:
    """The near ones, where leaving the others out more than halves the range; else all."""
    whole = extent(spans)
    part = extent([spans[i] for i in near])
    return near if len(near) > 1 and part < 0.5 * whole else set(range(len(spans)))


class Line(NamedTuple):
    """A line of a plot: its name, points, and the low and high ends of its band if it has one."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()


def losses(
    title: str, by_client: Mapping[str, Sequence[tuple[float, float]]], *, width: float = NARROW
) -> Plot:
    """Losses over rounds: a thin line for each client, and a thick one for their mean.

    Args:
      title: for those who cannot see it.
      by_client: rounds, from 1, and losses.
      width: in pixels.
    """
    rounds = sorted({x for points in by_client.values() for x, _ in points})
    values = {x: [y for own in by_client.values() for at, y in own if at == x] for x in rounds}
    mean = Line("mean", [(x, sum(values[x]) / len(values[x])) for x in rounds])

    def behind(axes: Axes) -> None:
        marker = "o" if len(rounds) == 1 else None
        for points in by_client.values():
            xs, ys = zip(*points, strict=True)
            style_ = {"color": SERIES[0], "alpha": 0.35, "linewidth": POINT}
            axes.plot(xs, ys, marker=marker, markersize=3 * POINT, **style_)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))

    ends = [y for points in by_client.values() for _, y in points]
    return _lines(title, ("round", "loss, nats a token"), [mean], ends, width, behind)


def curves(
    title: str,
    metric: Metric,
    weights: Sequence[float],
    sides: Mapping[str, Sequence[Interval]],
    *,
    width: float = NARROW,
) -> Plot:
    """A score against the mixing weight, on own and on foreign tasks, with intervals.

    Args:
      title: for those who cannot see it.
      metric: of the scores.
      weights: of the local adapter.
      sides: the score at each weight, by "own" and "foreign".
      width: in pixels.
    """
    drawn = [
        Line(
            f"{side} tasks",
            [(w, point.value) for w, point in zip(weights, points, strict=True)],
            [point.ends for point in points],
        )
        for side, points in sides.items()
    ]
    named = ("weight of the local adapter", f"{metric.heading} ({metric.better} is better)")
    return _lines(title, named, drawn, [e for line in drawn for b in line.band for e in b], width)


def _lines(
    title: str,
    axes_names: tuple[str, str],
    drawn: Sequence[Line],
    ends: Sequence[float],
    width: float,
    behind: Callable[[Axes], None] = lambda axes: None,
) -> Plot:
    """Lines with bands, each with its name at its end."""
    room = max(text_width(line.name) for line in drawn) + 12
    left, top = 46.0, 30.0
    height = 0.5 * min(width, 1.4 * NARROW)
    inner = width - left - room
    with style():
        figure = new_plot(title, width, top + height + 44)
        axes = figure.place(left, top, inner, height)
        figure.write(
            4, 14, fitted(axes_names[1], width - 8, SMALL), color=MUTE, fontsize=SMALL * POINT
        )
        figure.write(
            left + inner,
            top + height + 36,
            axes_names[0],
            ha="right",
            color=MUTE,
            fontsize=SMALL * POINT,
        )
        low, high = limits(ends, 0.05)
        axes.set_ylim(low, high)
        xs = [x for line in drawn for x, _ in line.points]
        axes.set_xlim(*((min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, min(xs) + 1)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, place: number(value)))
        behind(axes)
        for colour, line in zip(SERIES, drawn, strict=False):
            along, up = zip(*line.points, strict=True)
            if line.band:
                lows, highs = zip(*line.band, strict=True)
                axes.fill_between(along, lows, highs, color=colour, alpha=0.14, linewidth=0)
            axes.plot(along, up, "o-", color=colour, linewidth=2.2 * POINT, markersize=4 * POINT)
        ordered = sorted(range(len(drawn)), key=lambda i: -drawn[i].points[-1][1])
        wanted = [top + height * (high - drawn[i].points[-1][1]) / (high - low) for i in ordered]
        for i, y in zip(ordered, spread(wanted, 16, top, top + height), strict=True):
            figure.write(
                left + inner + 8, y, drawn[i].name, va="center", color=SERIES[i], weight="bold"
            )
    return figure


def weights(
    title: str,
    rows: Sequence[tuple[str, Mapping[str, Sequence[float]]]],
    *,
    width: float = WIDE,
) -> Plot:
    """Quantiles of weights from 0 to 1: for each row two boxes, of own and of foreign instances.

    Args:
      title: for those who cannot see it.
      rows: name, and by "own" and "foreign" the 5, 25, 50, 75 and 95 % quantiles.
      width: in pixels.
    """
    names = min(max(text_width(name) for name, _ in rows) + 14, 0.34 * width)
    each, top = 40.0, 30.0
    inner = width - names - 24
    with style():
        figure = new_plot(title, width, top + each * len(rows) + 46)
        axes = figure.place(names, top, inner, each * len(rows))
        axes.set_xlim(0, 1)
        axes.set_ylim(each * len(rows), 0)
        axes.yaxis.set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: number(value)))
        said = {"fontsize": SMALL * POINT, "color": MUTE}
        figure.write(
            names + inner,
            top + each * len(rows) + 38,
            "weight of the local adapter",
            ha="right",
            **said,
        )
        for s, side in enumerate(("own", "foreign")):
            figure.write(names + 92 * s, 14, f"{side} tasks", color=SERIES[s], weight="bold")
        for r, (name, sides) in enumerate(rows):
            shown = fitted(name, names - 12)
            figure.write(names - 12, top + each * (r + 0.5), shown, ha="right", va="center")
            for s, side in enumerate(("own", "foreign")):
                if side in sides:
                    _box(axes, sides[side], each * r + 12 + 15 * s, SERIES[s])
    return figure


def _box(axes: Axes, quantiles: Sequence[float], y: float, colour: str) -> None:
    q05, q25, q50, q75, q95 = quantiles
    axes.plot([q05, q95], [y, y], color=colour, linewidth=1.6 * POINT)
    axes.fill_between([q25, max(q75, q25 + 0.003)], y - 6, y + 6, color=colour, linewidth=0)
    axes.plot([q50, q50], [y - 6, y + 6], color=PAGE, linewidth=2 * POINT, solid_capstyle="butt")
