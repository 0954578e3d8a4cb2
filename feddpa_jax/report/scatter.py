"""P against TTP: one look says which method and mode wins."""

import dataclasses
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from feddpa_jax.evaluate.interval import Interval
from feddpa_jax.evaluate.metrics import Metric
from feddpa_jax.report.plot_style import (
    INK,
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

_MARKERS = {"instance": "o", "global": "s", "local": "^", "fixed": "D", "base": "X"}
# So many times the usual width of an interval from the best, a mode is in another league.
_REACH = 2.5
_TOP, _LEFT, _BOTTOM, _GAP = 30.0, 46.0, 40.0, 14.0


@dataclasses.dataclass(frozen=True)
class Point:
    """A method and mode.

    Attributes:
      name: of the method or run and the mode.
      mode: gives the marker, which modes of one's own share.
      group: gives the colour.
      stands_out: the mode that the method answers with.
      p: personalization.
      ttp: test-time personalization.
    """

    name: str
    mode: str
    group: int
    stands_out: bool
    p: Interval
    ttp: Interval

    @property
    def colour(self) -> str:
        """Of the point and its name."""
        return SERIES[self.group % len(SERIES)]

    @property
    def marker(self) -> str:
        """The same for a mode in every figure."""
        return _MARKERS.get(self.mode, "v")


def p_against_ttp(points: Sequence[Point], metric: Metric, width: float = WIDE) -> Plot:
    """P along, TTP up, each point with both intervals and its name; up and right is better.

    Where some points are far from the best, those near it are shown large, and all beside them.

    Args:
      points: methods and modes; those without a P are left out.
      metric: of the scores; where lower is better, the axes run the other way.
      width: of the figure in pixels; in a narrow one the parts stand below each other.

    Raises:
      ValueError: no point has a P.
    """
    points = [point for point in points if point.p.known and point.ttp.known]
    if not points:
        raise ValueError("no mode has both P and TTP: no client has a task of its own in the tests")
    near = contenders(points, metric)
    far = [point for point in points if point not in near]
    title = f"P against TTP by {metric.title}"
    small = width < 1.5 * NARROW
    names = max(text_width(point.name, bold=point.stands_out) for point in near)
    room = min(max(names, 96.0), 0.36 * width if small else 0.24 * width) + 30
    height = max(250.0 if small else 380.0, 16.0 * len(near))
    with style():
        if not far:
            figure = new_plot(title, width, _TOP + height + _BOTTOM)
            _panel(figure, near, metric, (_LEFT, _TOP, width - _LEFT - room, height))
        elif small:
            below = _TOP + height + _BOTTOM + 26
            figure = new_plot(title, width, below + 190 + _BOTTOM)
            _panel(figure, near, metric, (_LEFT, _TOP, width - _LEFT - room, height))
            _overview(figure, points, near, metric, (_LEFT, below, width - _LEFT - 20, 190.0))
        else:
            side = 0.27 * width
            figure = new_plot(title, width, _TOP + height + _BOTTOM)
            large = width - _LEFT - room - _LEFT - side - 16
            _panel(figure, near, metric, (_LEFT, _TOP, large, height))
            place = (width - side - 12, _TOP, side, height)
            _overview(figure, points, near, metric, place)
    return figure


def contenders(points: Sequence[Point], metric: Metric) -> list[Point]:
    """The points that are near the best, or stand out; all, where leaving some out gains little."""
    near = set(range(len(points)))
    for spans in ([point.p for point in points], [point.ttp for point in points]):
        near &= set(within_reach(spans, lower_is_better=metric.lower_is_better))
    near |= {place for place, point in enumerate(points) if point.stands_out}
    kept = [points[place] for place in sorted(near)]
    gains = [
        extent([getattr(point, which) for point in kept])
        < 0.5 * extent([getattr(point, which) for point in points])
        for which in ("p", "ttp")
    ]
    return kept if len(kept) > 1 and any(gains) else list(points)


def within_reach(spans: Sequence[Interval], *, lower_is_better: bool) -> list[int]:
    """Which values are no more than a few usual widths of their intervals from the best."""
    best = (min if lower_is_better else max)(span.value for span in spans)
    reach = _REACH * statistics.median(span.ends[1] - span.ends[0] for span in spans)
    return [
        i for i, span in enumerate(spans) if abs(span.value - best) <= reach or not span.bounded
    ]


def extent(spans: Sequence[Interval]) -> float:
    """From the lowest to the highest end."""
    return max(span.ends[1] for span in spans) - min(span.ends[0] for span in spans)


def _panel(figure: Plot, points: Sequence[Point], metric: Metric, place: tuple[float, ...]) -> None:
    """Points with crosses, and their names to the right."""
    left, top, width, height = place
    axes = figure.place(left, top, width, height)
    _points(axes, points, metric, 5)
    word = f"{metric.short} ({metric.better} is better)"
    figure.write(left, 14, fitted(f"↑ TTP, all tasks: {word}", width + 140, SMALL), **_said(MUTE))
    whole = figure.get_size_inches()[0] * 72 / POINT
    said = fitted(f"P, own task: {word} →", whole - 12, SMALL)
    end = max(left + width, min(whole - 8, 4 + text_width(said, SMALL)))
    figure.write(end, top + height + 34, said, ha="right", **_said(MUTE))
    across, up = axes.get_xlim(), axes.get_ylim()
    where = [
        (
            left + width * (point.p.value - across[0]) / (across[1] - across[0]),
            top + height * (up[1] - point.ttp.value) / (up[1] - up[0]),
        )
        for point in points
    ]
    _names(figure, points, where, left + width + _GAP, top, top + height)


def _names(
    figure: Plot,
    points: Sequence[Point],
    where: Sequence[tuple[float, float]],
    left: float,
    top: float,
    bottom: float,
) -> None:
    """The points' names in a column, in the order of TTP, with a thin line to each point."""
    width = figure.get_size_inches()[0] * 72 / POINT
    order = sorted(range(len(points)), key=lambda i: where[i][1])
    heights = spread([where[i][1] for i in order], 16.0, top, bottom)
    room = min(0.36 * width, width - left - 12)
    for i, y in zip(order, heights, strict=True):
        point, (x, own) = points[i], where[i]
        figure.add_artist(_line(figure, [(x, own), (left - 3, y), (left + 5, y)]))
        name = fitted(point.name, room, bold=point.stands_out)
        weight = "bold" if point.stands_out else "normal"
        figure.write(left + 9, y, name, color=point.colour, weight=weight, va="center")


def _line(figure: Plot, corners: Sequence[tuple[float, float]]):
    from matplotlib.lines import Line2D

    w, h = figure.get_size_inches() * 72 / POINT
    xs, ys = [x / w for x, _ in corners], [1 - y / h for _, y in corners]
    return Line2D(xs, ys, color=MUTE, linewidth=0.6 * POINT, alpha=0.45, zorder=0)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places, moved apart to a gap and kept within bounds where there is room.

    >>> spread([1.0, 2.0, 9.0], 3.0, 0.0, 10.0)
    [1.0, 4.0, 9.0]
    """
    found: list[float] = []
    for place in wanted:
        found.append(max(place, found[-1] + gap if found else low))
    last = high
    for i in reversed(range(len(found))):
        found[i] = min(found[i], last)
        last = found[i] - gap
    return found


def _said(colour: str) -> dict:
    return {"color": colour, "fontsize": SMALL * POINT}


def _points(axes: Axes, points: Sequence[Point], metric: Metric, ticks: int) -> None:
    """Points with both intervals, on axes that hold them all."""
    for point in sorted(points, key=lambda point: point.stands_out):
        size = 9.0 if point.stands_out else 7.0
        strength = {"color": point.colour, "alpha": 1.0 if point.stands_out else 0.55}
        width = (2.2 if point.stands_out else 1.4) * POINT
        p, ttp = point.p, point.ttp
        axes.plot(p.ends, [ttp.value] * 2, linewidth=width, **strength)
        axes.plot([p.value] * 2, ttp.ends, linewidth=width, **strength)
        axes.plot(
            [p.value],
            [ttp.value],
            marker=point.marker,
            color=point.colour,
            markersize=size * POINT,
            markerfacecolor=point.colour if point.stands_out else PAGE,
            markeredgecolor=point.colour,
            markeredgewidth=1.6 * POINT,
        )
    for axis, spans, bound in (
        (axes.xaxis, [point.p for point in points], axes.set_xlim),
        (axes.yaxis, [point.ttp for point in points], axes.set_ylim),
    ):
        low, high = limits([e for span in spans for e in span.ends], 0.04)
        bound(*((high, low) if metric.lower_is_better else (low, high)))
        axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, place: number(value)))


def limits(ends: Sequence[float], margin: float) -> tuple[float, float]:
    """The range of some values with a margin on both sides; some range where they are equal."""
    low, high = min(ends), max(ends)
    least = 1e-6 * max(abs(low), abs(high), 1e-300)
    extra = margin * (high - low) if high - low > least else max(0.5, 0.01 * abs(low))
    return low - extra, high + extra


def _overview(
    figure: Plot,
    points: Sequence[Point],
    near: Sequence[Point],
    metric: Metric,
    place: tuple[float, ...],
) -> None:
    """All points, small; names of those that are not shown large; a frame around the others."""
    left, top, width, height = place
    axes = figure.place(*place)
    _points(axes, points, metric, 3)
    figure.write(left, top - 16, "All modes", color=INK, weight="bold", fontsize=SMALL * POINT)
    ends = [
        limits([e for p in near for e in getattr(p, which).ends], 0.04) for which in ("p", "ttp")
    ]
    (x0, x1), (y0, y1) = ends
    axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=MUTE, linewidth=0.8 * POINT)
    across, up = axes.get_xlim(), axes.get_ylim()
    named: dict[tuple[float, float], list[Point]] = {}
    for point in points:
        named.setdefault((point.p.value, point.ttp.value), []).append(point)

    def at_x(p: float) -> float:
        return left + width * (p - across[0]) / (across[1] - across[0])

    def at_y(ttp: float) -> float:
        return top + height * (up[1] - ttp) / (up[1] - up[0])

    places = {(p, ttp): (at_x(p), at_y(ttp)) for p, ttp in named}
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places.values()]
    for (x, y), (point, *_) in zip(places.values(), named.values(), strict=True):
        ends = sorted(map(at_x, point.p.ends))
        taken.append((ends[0], y - 2, ends[1], y + 2))
        ends = sorted(map(at_y, point.ttp.ends))
        taken.append((x - 2, ends[0], x + 2, ends[1]))
    for key, same in named.items():
        if same[0] in near:
            continue
        # The bare model's scores are the same in every run.
        is_base = len(same) > 1 and {point.mode for point in same} == {"base"}
        name = "base" if is_base else ", ".join(point.name for point in same)
        x, y = places[key]
        at, up_, side = _free_place(x, y, name, (left, top, left + width, top + height), taken)
        room = left + width - at + 10 if side == "left" else at - left
        name = fitted(name, room, SMALL)
        figure.write(at, up_, name, ha=side, va="center", **_said(same[0].colour))


_Box = tuple[float, float, float, float]


def _free_place(
    x: float, y: float, name: str, panel: _Box, taken: list[_Box]
) -> tuple[float, float, str]:
    """Where a point's name hides least, and its side that is there; the place is then taken."""
    width, found = text_width(name, SMALL), []
    for far, down in ((10, 0), (8, -9), (8, 9), (6, -16), (6, 16)):
        for side in ("left", "right"):
            start = x + far if side == "left" else x - far - width
            box = (start, y + down - 6, start + width, y + down + 6)
            outside = max(0.0, panel[0] - box[0]) + max(0.0, box[2] - panel[2])
            below = 20.0 * (box[3] > panel[3] or box[1] < panel[1])
            hidden = sum(_overlap(box, other) for other in taken)
            found.append(
                (4 * outside + below + hidden, x + far if side == "left" else x - far, box, side)
            )
    _, at, box, side = min(found, key=lambda one: one[0])
    taken.append(box)
    return at, (box[1] + box[3]) / 2, side


def _overlap(one: _Box, other: _Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
