"""The picture of a partition: what is drawn are the counts, for few clients and for many."""

import itertools

import numpy as np
import pyarrow
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle, StepPatch

from feddpa_jax.partitioning.partition import Partition, partition
from feddpa_jax.report.plot_style import to_svg
from tests.partitioning.flat_examples import flat


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def steps(axes: Axes) -> list[tuple[np.ndarray, np.ndarray]]:
    """The upper and the lower ends of each filled series."""
    data = [patch.get_data() for patch in axes.patches if isinstance(patch, StepPatch)]
    return [(np.asarray(high), np.asarray(low)) for high, _, low in data]


def test_few_clients_have_a_bar_each():
    found = partition(flat(), "dirichlet(task, alpha=0.3)", clients=10)
    figure = found.plot()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == list(found.names)
    ends = np.zeros(10)
    drawn = 0
    for bar in bars(axes):
        row = round(bar.get_y() + bar.get_height() / 2)
        assert bar.get_x() == ends[row]  # On the end of the one before.
        ends[row] += bar.get_width()
        drawn += 1
    assert list(ends) == list(np.bincount(found.client_I))
    tasks = found.table.column("task").to_pylist()
    assert drawn == len(set(zip(found.client_I, tasks, strict=True)))
    svg = to_svg(figure)
    assert all(f">task {n}<" in svg for n in range(4)) and ">task:<" in svg


def test_many_clients_stand_side_by_side_by_their_most_common_label():
    found = partition(flat(3000), "dirichlet(task, alpha=0.3)", clients=100)
    figure = found.plot(width=400)
    parts, sizes = figure.axes
    stack = steps(parts)
    assert len(stack) == 4 and all(len(high) == 100 for high, _ in stack)
    assert stack[-1][0] == pytest.approx(np.ones(100))
    for (below, _), (_, above) in itertools.pairwise(stack):
        assert np.array_equal(below, above)
    part_KC = np.array([high - low for high, low in stack])
    most_C = part_KC.round(9).argmax(axis=0)  # The first of equal ones.
    assert list(most_C) == sorted(most_C)
    ((drawn, _),) = steps(sizes)
    assert sorted(drawn) == sorted(np.bincount(found.client_I))


def test_of_very_many_clients_some_are_drawn():
    client_I = np.arange(6000) % 3000
    labels = np.array([f"label {n}" for n in np.arange(6000) % 20])
    table = pyarrow.table({"task": labels})
    names = tuple(f"c{n}" for n in range(3000))
    found = Partition(
        table, client_I, np.zeros(6000, bool), names, {"seed": 0, "partition": "x"}, "task"
    )
    figure = found.plot()
    stack = steps(figure.axes[0])
    # Eleven labels with a colour of their own, and nine others.
    assert len(stack) == 12 and len(stack[0][0]) == 1000
    assert "3,000 clients, 1,000 of them drawn" in figure.axes[1].get_xlabel()
    assert ">9 others<" in to_svg(figure)


def test_without_labels_the_sizes_are_drawn():
    rows = [{"instruction": "a", "output": "b"}] * 30
    found = partition(rows, "iid(sizes=[10, 20])")
    (axes,) = found.plot().axes
    assert [bar.get_width() for bar in bars(axes)] == [10, 20]
    assert found.statistics.distance is None
    assert "values" not in to_svg(found.plot())
