"""Plots as SVG text: intervals, heat maps, lines and quantile boxes."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from feddpa_jax.files.escape import html

Span = tuple[float, float, float]  # value, low, high
_ROW, _LEFT, _TEXT = 24, 190, 12
SERIES = 6  # colours --c0 ... of the page


class Line(NamedTuple):
    """A line of a plot: its name ("" for none in the legend), points, and band if it has one."""

    name: str
    points: Sequence[tuple[float, float]]
    series: int
    is_thin: bool = False
    band: Sequence[tuple[float, float]] = ()


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that span a range, at most so many and one.

    >>> ticks(0.13, 0.87)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    size = max(abs(low), abs(high))
    if not high - low > 1e-9 * size:  # Equal, but perhaps for rounding.
        margin = max(0.5, 0.005 * size)
        low, high = low - margin, high + margin
    raw = (high - low) / (most - 1)
    exponent = math.floor(math.log10(raw))
    scale = 10.0**exponent
    step = next(s * scale for s in (1, 2, 2.5, 5, 10) if s * scale >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(k * step, 2 - exponent) for k in range(first, last + 1)]


def number(value: float) -> str:
    """A tick's label: no digit too many."""
    return f"{value:.10g}"


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" '
        f'style="min-width:{min(width, 680):g}px;max-width:{width:g}px">'
        f"<title>{html(title)}</title>{''.join(parts)}</svg>"
    )


def standalone(svg: str, style: str) -> str:
    """A plot as a file of its own, with its style sheet in it."""
    start = '<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" '
    head, end, rest = svg.removeprefix("<svg ").partition(">")
    return f"{start}{head}{end}<style>{style}</style>{rest}\n"


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{html(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _short(text: str, most: int = 30) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def intervals(
    title: str,
    panels: Sequence[str],
    rows: Sequence[tuple[str, bool, Sequence[Span | None]]],
    *,
    same_axis: bool = True,
) -> str:
    """Values with intervals: a row each, a panel for each of their values.

    Args:
      title: for those who cannot see it.
      panels: their headings.
      rows: name, whether it stands out, and a value for each panel.
      same_axis: all panels share their range.
    """
    gap, width = 44.0, 860.0
    panel = (width - _LEFT - gap * len(panels)) / len(panels)
    height = 30 + _ROW * len(rows) + 30
    parts = []
    for p, heading in enumerate(panels):
        shown = range(len(panels)) if same_axis else [p]
        ends = [e for _, _, spans in rows for q in shown if (span := spans[q]) for e in span]
        marks = ticks(min(ends), max(ends), 5) if ends else [0.0, 1.0]
        left = _LEFT + p * (panel + gap) + gap / 2

        def at(value: float, left: float = left, marks: list[float] = marks) -> float:
            return left + panel * (value - marks[0]) / (marks[-1] - marks[0])

        parts.append(_text(left, 16, heading, kind="strong"))
        for mark in marks:
            parts.append(_line(at(mark), 26, at(mark), height - 28, "grid"))
            parts.append(_text(at(mark), height - 12, number(mark), "middle", "mute"))
        for r, (name, stands_out, spans) in enumerate(rows):
            y = 30 + _ROW * (r + 0.5)
            kind = "s0" if stands_out else "s1"
            if p == 0:
                parts.append(
                    _text(_LEFT, y + 4, _short(name), "end", "strong" if stands_out else "")
                )
            if (span := spans[p]) is not None:
                value, low, high = span
                parts.append(_line(at(low), y, at(high), y, f"bar {kind}"))
                parts.append(f'<circle cx="{at(value):.1f}" cy="{y:.1f}" r="4.5" class="{kind}"/>')
    return _svg(title, width, height, parts)


def heat_map(
    title: str,
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float]],
    outlined: Sequence[Sequence[bool]],
    *,
    lower_is_better: bool,
) -> str:
    """A cell for each row and column: the better in its column, the darker; own ones are framed."""
    cell_w, cell_h = 64.0, 26.0
    left, top = 150.0, 96.0
    most = max(value for row in values for value in row)
    parts = []
    for c, column in enumerate(columns):
        x = left + (c + 0.5) * cell_w
        parts.append(
            f'<text transform="translate({x - 4:.1f} {top - 8:.1f}) rotate(-30)">'
            f"{html(_short(column, 22))}</text>"
        )
    for r, name in enumerate(rows):
        y = top + r * cell_h
        parts.append(_text(left - 8, y + cell_h / 2 + 4, _short(name, 20), "end"))
        for c, value in enumerate(values[r]):
            low, high = min(row[c] for row in values), max(row[c] for row in values)
            share = 0.5 if high == low else (value - low) / (high - low)
            share = 1 - share if lower_is_better else share
            # From near white to the paper's blue; text in the colour that can be read on it.
            red, green, blue = (round(a + (b - a) * share) for a, b in _HEAT)
            ink = "#fff" if share > 0.55 else "#111"
            x = left + c * cell_w
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{cell_w - 2:.1f}" '
                f'height="{cell_h - 2:.1f}" rx="2" fill="rgb({red},{green},{blue})"'
                f"{' class=' + chr(34) + 'own' + chr(34) if outlined[r][c] else ''}/>"
                f'<text x="{x + cell_w / 2:.1f}" y="{y + cell_h / 2 + 4:.1f}" '
                f'text-anchor="middle" style="fill:{ink}">{value:.{1 if most >= 20 else 2}f}</text>'
            )
    return _svg(title, left + cell_w * len(columns) + 40, top + cell_h * len(rows) + 8, parts)


_HEAT = ((238, 8), (243, 69), (248, 124))


def lines(
    title: str, x_name: str, y_name: str, drawn: Sequence[Line], *, whole_x: bool = False
) -> str:
    """Lines over a common axis, with bands; thin ones lie behind.

    Args:
      title: for those who cannot see it.
      x_name: what runs along.
      y_name: what runs up.
      drawn: the lines.
      whole_x: only whole numbers are marked along the axis.
    """
    width, height, left, right, top, bottom = 640.0, 326.0, 56.0, 150.0, 30.0, 44.0
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    ys += [y for line in drawn for band in line.band for y in band]
    x_marks = ticks(min(xs), max(xs), 9)
    if whole_x:
        x_marks = [m for m in x_marks if m == int(m) and min(xs) <= m <= max(xs)]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_marks = ticks(min(ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (width - left - right) * (x - x_low) / (x_high - x_low),
            height
            - bottom
            - (height - top - bottom) * (y - y_marks[0]) / (y_marks[-1] - y_marks[0]),
        )

    parts = [_text(left - 44, 12, y_name, kind="mute")]
    for mark in y_marks:
        _, y = at(x_low, mark)
        parts += [
            _line(left, y, width - right, y, "grid"),
            _text(left - 8, y + 4, number(mark), "end", "mute"),
        ]
    for mark in x_marks:
        x, _ = at(mark, y_marks[0])
        parts.append(_text(x, height - bottom + 18, number(mark), "middle", "mute"))
    parts.append(_text((left + width - right) / 2, height - 8, x_name, "middle", "mute"))
    labels: list[tuple[float, str, int]] = []
    for line in sorted(drawn, key=lambda line: not line.is_thin):
        kind = f"s{line.series % SERIES}"
        width_kind = "thin" if line.is_thin else "line"
        if line.band:
            edge = [at(x, high) for (x, _), (_, high) in zip(line.points, line.band, strict=True)]
            edge += [at(x, low) for (x, _), (low, _) in zip(line.points, line.band, strict=True)][
                ::-1
            ]
            parts.append(f'<polygon points="{_points(edge)}" class="band {kind}"/>')
        where = [at(*point) for point in line.points]
        parts.append(f'<polyline points="{_points(where)}" class="{width_kind} {kind}"/>')
        if len(where) == 1 or not line.is_thin:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="{kind}"/>' for x, y in where]
        if line.name:
            labels.append((where[-1][1], line.name, line.series))
    # Names stand at their lines' ends, moved apart where they would touch.
    y = -math.inf
    for wanted, name, series in sorted(labels):
        y = max(wanted, y + 15)
        parts.append(_text(width - right + 10, y + 4, _short(name, 20), kind=f"t{series % SERIES}"))
    return _svg(title, width, height, parts)


def _points(where: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in where)


def boxes(
    title: str, x_name: str, rows: Sequence[tuple[str, Mapping[str, Sequence[float]]]]
) -> str:
    """Quantiles from 0 to 1: for each row two boxes, of own and of foreign instances.

    Args:
      title: for those who cannot see it.
      x_name: what runs along.
      rows: name, and by "own" and "foreign" the 5, 25, 50, 75 and 95 % quantiles.
    """
    width, each, left = 760.0, 34.0, 230.0
    height = 34 + each * len(rows) + 42

    def at(value: float) -> float:
        return left + (width - left - 20) * value

    parts = []
    for mark in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line(at(mark), 26, at(mark), height - 40, "grid"))
        parts.append(_text(at(mark), height - 24, number(mark), "middle", "mute"))
    parts.append(_text((at(0) + at(1)) / 2, height - 6, x_name, "middle", "mute"))
    for s, side in enumerate(("own", "foreign")):
        x = left + 110 * s
        parts.append(f'<rect x="{x:.1f}" y="6" width="12" height="10" class="box s{s}"/>')
        parts.append(_text(x + 18, 15, f"{side} tasks"))
    for r, (name, sides) in enumerate(rows):
        y = 34 + each * r
        parts.append(_text(left - 10, y + each / 2, _short(name, 34), "end"))
        for s, side in enumerate(("own", "foreign")):
            if (quantiles := sides.get(side)) is None:
                continue
            q05, q25, q50, q75, q95 = quantiles
            middle = y + 8 + 13 * s
            parts.append(_line(at(q05), middle, at(q95), middle, f"whisker s{s}"))
            parts.append(
                f'<rect x="{at(q25):.1f}" y="{middle - 5:.1f}" '
                f'width="{max(at(q75) - at(q25), 1.5):.1f}" height="10" class="box s{s}"/>'
            )
            parts.append(_line(at(q50), middle - 5, at(q50), middle + 5, "median"))
    return _svg(title, width, height, parts)
