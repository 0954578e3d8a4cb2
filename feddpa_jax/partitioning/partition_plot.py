"""The picture of a partition: each client's examples by label, as stacked bars."""

from collections.abc import Sequence

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

from feddpa_jax.partitioning.heterogeneity import pair_counts
from feddpa_jax.partitioning.pool import Labels
from feddpa_jax.report.plot_style import (
    MUTE,
    POINT,
    SERIES,
    SMALL,
    Plot,
    fitted,
    new_plot,
    style,
    text_width,
)

# Up to so many clients have a row with a name each; of more than the second, as many are drawn.
NAMED, MOST_DRAWN = 40, 1000
# The first colours, and lighter ones of the same; then one for all other labels together.
_TINTS = (0.0, 0.5)
_OTHERS = "#b8bec6"
_ROW, _LINE, _TOP = 20.0, 20.0, 8.0


def plot_clients(
    client_I: np.ndarray,
    names: Sequence[str],
    labels: Labels | None,
    column: str | None,
    title: str,
    width: float = 680,
) -> Plot:
    """The examples of each client by label.

    Few clients have a bar each, as long as they have examples. Many stand side by side, sorted by
    the label that they have most of: the parts of the labels above, and the examples below.

    Args:
      client_I: each example's client, below 0 for none.
      names: of the clients.
      labels: of the examples; None where they have none.
      column: of the labels.
      title: for those who cannot see it.
      width: in pixels.
    """
    count_CK, shown = _counts(client_I, len(names), labels)
    colours = _colours(len(count_CK[0]), others="others" in shown[-1:])
    with style():
        key = _key_lines(shown, column, width)
        room = _TOP + _LINE * len(key) + 8
        if len(names) <= NAMED:
            figure = new_plot(title, width, room + _ROW * len(names) + 44)
            _bars(figure, room, count_CK, names, colours, width)
        else:
            figure = new_plot(title, width, room + 220 + 130 + 60)
            _many(figure, room, count_CK, colours, width)
        _draw_key(figure, key, colours)
    return figure


def _counts(
    client_I: np.ndarray, clients: int, labels: Labels | None
) -> tuple[np.ndarray, list[str]]:
    """Examples by client and label [C, K], the most common labels first; and the labels' names.

    Labels without a colour are the last one, "others", together.
    """
    if labels is None:
        return np.bincount(client_I[client_I >= 0], minlength=clients)[:, None], []
    most = len(SERIES) * len(_TINTS)
    by_size = np.argsort(-labels.counts, kind="stable")
    alone = by_size if len(by_size) <= most else by_size[: most - 1]
    place_K = np.full(len(labels.names), len(alone))
    place_K[alone] = np.arange(len(alone))
    client_P, label_P, count_P = pair_counts(client_I, labels)
    count_CK = np.zeros((clients, len(alone) + (len(alone) < len(by_size))), np.int64)
    np.add.at(count_CK, (client_P, place_K[label_P]), count_P)
    shown = [labels.names[k] for k in alone]
    if len(alone) < len(by_size):
        shown.append(f"{len(by_size) - len(alone)} others")
    return count_CK, shown


def _colours(count: int, *, others: bool) -> list[str]:
    def lighter(colour: str, part: float) -> str:
        mixed = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        return "#" + "".join(f"{round(one + (255 - one) * part):02x}" for one in mixed)

    found = [lighter(colour, tint) for tint in _TINTS for colour in SERIES][:count]
    return [*found[: count - 1], _OTHERS] if others else found


def _key_lines(
    shown: Sequence[str], column: str | None, width: float
) -> list[list[tuple[float, str, int | None]]]:
    """The key's lines: for each text its left edge and the number of its colour, if it has one."""
    lines: list[list[tuple[float, str, int | None]]] = []
    left = width
    texts: list[tuple[str, int | None]] = [(f"{column}:", None)] if shown else []
    texts += [(name, k) for k, name in enumerate(shown)]
    for text, k in texts:
        text = fitted(text, 180, SMALL)
        wide = text_width(text, SMALL) + (30 if k is not None else 10)
        if left + wide > width - 10:
            lines.append([])
            left = 10.0
        lines[-1].append((left, text, k))
        left += wide
    return lines


def _draw_key(
    figure: Plot, lines: Sequence[Sequence[tuple[float, str, int | None]]], colours: Sequence[str]
) -> None:
    w, h = figure.get_size_inches() * 72 / POINT
    for number, line in enumerate(lines):
        middle = _TOP + (number + 0.5) * _LINE
        for left, text, k in line:
            if k is not None:
                place = (left / w, 1 - (middle + 5) / h)
                figure.add_artist(Rectangle(place, 10 / w, 10 / h, color=colours[k], linewidth=0))
                left += 15
            figure.write(left, middle, text, va="center", fontsize=SMALL * POINT, color=MUTE)


def _bars(
    figure: Plot,
    top: float,
    count_CK: np.ndarray,
    names: Sequence[str],
    colours: Sequence[str],
    width: float,
) -> None:
    """A row for each client, with its name."""
    shown = [fitted(name, 0.3 * width, SMALL) for name in names]
    left = max(text_width(name, SMALL) for name in shown) + 16
    axes = figure.place(left, top, width - left - 20, _ROW * len(names))
    start_C = np.zeros(len(names))
    for k, colour in enumerate(colours):
        has = np.flatnonzero(count_CK[:, k])
        axes.barh(
            *(has, count_CK[has, k], 0.75),
            left=start_C[has],
            color=colour,
            linewidth=0,
        )
        start_C += count_CK[:, k]
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), shown)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.02 * start_C.max())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("examples", fontsize=SMALL * POINT)


def _many(
    figure: Plot, top: float, count_CK: np.ndarray, colours: Sequence[str], width: float
) -> None:
    """All clients side by side: the parts of their labels, and their examples below."""
    size_C = count_CK.sum(axis=1)
    part_CK = count_CK / np.maximum(size_C, 1)[:, None]
    first_C = part_CK.argmax(axis=1)
    order = np.lexsort((-size_C, -part_CK.max(axis=1), first_C))
    clients = len(order)
    if clients > MOST_DRAWN:
        order = order[np.linspace(0, clients - 1, MOST_DRAWN).round().astype(int)]
    edges = np.linspace(0, clients, len(order) + 1)
    left, wide = 52.0, width - 52 - 20
    parts = figure.place(left, top, wide, 220)
    low_C = np.zeros(len(order))
    for k, colour in enumerate(colours):
        high_C = low_C + part_CK[order, k]
        parts.stairs(high_C, edges, baseline=low_C, fill=True, color=colour, linewidth=0)
        low_C = high_C
    parts.set_ylim(0, 1)
    parts.yaxis.set_major_formatter(PercentFormatter(1.0))
    parts.tick_params(labelbottom=False)
    sizes = figure.place(left, top + 220 + 16, wide, 114)
    skewed = size_C.max() > 30 * size_C.min()
    low = 0.5 if skewed else 0.0
    sizes.stairs(size_C[order], edges, baseline=low, fill=True, color=MUTE, linewidth=0)
    if skewed:
        sizes.set_yscale("log")
        sizes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        sizes.yaxis.set_minor_locator(NullLocator())
        sizes.set_ylim(low, 1.3 * size_C.max())
    else:
        sizes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        sizes.set_ylim(low, 1.05 * size_C.max())
    sizes.set_ylabel("examples", fontsize=SMALL * POINT)
    drawn = "" if clients == len(order) else f", {len(order):,} of them drawn"
    about = f"{clients:,} clients{drawn}, sorted by their most common label"
    sizes.set_xlabel(about, fontsize=SMALL * POINT)
    for axes in (parts, sizes):
        axes.set_xlim(0, clients)
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
