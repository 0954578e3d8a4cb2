"""Scores by client and task as a heat map."""

from collections.abc import Mapping, Sequence

from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba

from feddpa_jax.evaluate.metrics import Metric
from feddpa_jax.report.plot_style import (
    INK,
    NARROW,
    PAGE,
    POINT,
    SERIES,
    SMALL,
    TEXT,
    WIDE,
    Plot,
    fitted,
    new_plot,
    style,
    text_width,
)


def matrix(
    title: str,
    scores: Mapping[str, Mapping[str, float]],
    own: Mapping[str, Sequence[str]],
    metric: Metric,
    *,
    width: float = WIDE,
) -> Plot:
    """A cell for each client and task: the better in its column, the darker; own ones are framed.

    Args:
      title: for those who cannot see it.
      scores: by client and task.
      own: the tasks of each client.
      metric: of the scores.
      width: in pixels; more where the tasks are many.
    """
    tasks = list(next(iter(scores.values())))
    size = TEXT if width >= 1.5 * NARROW else SMALL
    names = min(max(text_width(client, size) for client in scores) + 12, 0.26 * width)
    cell = max((width - names - 46.0) / len(tasks), 3.1 * size)
    cell = min(cell, 200.0)
    width = max(names + cell * len(tasks) + 46.0, width)
    height = 25.0 if size == TEXT else 23.0
    heads = [fitted(task, 150, size) for task in tasks]
    flat = all(text_width(head, size) < cell - 4 for head in heads)
    top = 26.0 if flat else 16 + 0.62 * max(text_width(head, size) for head in heads)
    with style():
        figure = new_plot(title, width, top + height * len(scores) + 8)
        _cells(figure, (names, top, cell, height, size), scores, own, metric)
        for c, head in enumerate(heads):
            x = names + (c + 0.5) * cell
            tilt = {"ha": "center"} if flat else {"rotation": 38, "ha": "left"}
            shift = 0 if flat else -4
            tilt |= {"va": "bottom", "rotation_mode": "anchor"}
            figure.write(x + shift, top - 6, head, fontsize=size * POINT, **tilt)
        for r, client in enumerate(scores):
            y = top + (r + 0.5) * height
            name = fitted(client, names - 10, size)
            figure.write(names - 8, y, name, ha="right", va="center", fontsize=size * POINT)
    return figure


def _cells(
    figure: Plot,
    grid: tuple[float, float, float, float, float],
    scores: Mapping[str, Mapping[str, float]],
    own: Mapping[str, Sequence[str]],
    metric: Metric,
) -> None:
    left, top, cell, height, size = grid
    table = [list(row.values()) for row in scores.values()]
    axes = figure.place(left, top, cell * len(table[0]), height * len(table))
    axes.set_axis_off()
    axes.set_xlim(0, cell * len(table[0]))
    axes.set_ylim(height * len(table), 0)
    digits = 1 if max(map(max, table)) >= 20 else 2
    shapes, fills, frames = [], [], []
    tasks = list(next(iter(scores.values())))
    for r, (client, row) in enumerate(zip(scores, table, strict=True)):
        for c, value in enumerate(row):
            column = [other[c] for other in table]
            share = better_share(value, column, lower_is_better=metric.lower_is_better)
            x, y = c * cell + 1, r * height + 1
            w, h = x + cell - 2, y + height - 2
            shapes.append([(x, y), (w, y), (w, h), (x, h)])
            fills.append(to_rgba(SERIES[0], 0.05 + 0.87 * share))
            if tasks[c] in own.get(client, ()):
                x, y, w, h = x + 1, y + 1, w - 1, h - 1
                frames.append([(x, y), (w, y), (w, h), (x, h)])
            figure.write(
                left + (c + 0.5) * cell,
                top + (r + 0.5) * height,
                f"{value:.{digits}f}",
                ha="center",
                va="center",
                color=PAGE if share > 0.68 else INK,
                fontsize=min(size, SMALL + 0.5) * POINT,
            )
    axes.add_collection(PolyCollection(shapes, facecolors=fills, linewidths=0), autolim=False)
    if frames:
        axes.add_collection(
            PolyCollection(frames, facecolors="none", edgecolors=SERIES[1], linewidths=2.4 * POINT),
            autolim=False,
        )


def better_share(value: float, column: Sequence[float], *, lower_is_better: bool) -> float:
    """From 0 for the worst value of a column to 1 for the best; a half where all are equal.

    >>> better_share(1.0, [1.0, 2.0, 5.0], lower_is_better=True)
    1.0
    """
    low, high = min(column), max(column)
    share = 0.5 if high == low else (value - low) / (high - low)
    return 1 - share if lower_is_better else share
