"""Every point of a figure, by hand: what matplotlib was given to draw."""

import re

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection, PolyCollection
from matplotlib.colors import to_hex

from feddpa_jax.evaluate.interval import Interval
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.report import figures, heat_map, run_figures
from feddpa_jax.report.content import Run, read_runs
from feddpa_jax.report.plot_style import NARROW, PAGE, SERIES, WIDE, Plot, number
from tests.report.conftest import HOSTILE, TASKS, corners, xs, ys

WIDTHS = pytest.mark.parametrize("width", [WIDE, NARROW])


def texts(figure: Plot) -> list[str]:
    return [text.get_text() for text in figure.texts]


def curve(line) -> list[tuple[float, float]]:
    return list(zip(xs(line), ys(line), strict=True))


@pytest.fixture
def run(make_run) -> Run:
    (run,) = read_runs([make_run("one")])
    return run


def spans_of(axes) -> dict[float, tuple[float, float, float]]:
    """By height: value, low, high of a panel of intervals."""
    found = {}
    for line in axes.lines:
        points = curve(line)
        if len(points) == 2 and points[0][1] == points[1][1]:
            (low, y), (high, _) = points
            (value,) = [p[0][0] for p in map(curve, axes.lines) if len(p) == 1 and p[0][1] == y]
            found[y] = (value, low, high)
    return found


@WIDTHS
def test_intervals(width):
    rows = [
        figures.Row("a", False, (Interval(1.0, 0.875, 1.375), Interval(3.0, 2.5, 3.25))),
        figures.Row("b", True, (Interval(2.0, 1.5, 2.25), Interval(4.0, 3.5, 5.0)), 1),
    ]
    figure = figures.intervals("t", ["P", "TTP"], rows, METRICS["nll"], width=width)
    p, ttp = figure.axes
    assert spans_of(p) == {0.5: (1.0, 0.875, 1.375), 1.5: (2.0, 1.5, 2.25)}
    assert spans_of(ttp) == {0.5: (3.0, 2.5, 3.25), 1.5: (4.0, 3.5, 5.0)}
    assert {to_hex(line.get_color()) for line in p.lines if ys(line)[0] == 1.5} == {SERIES[1]}
    bold = [text.get_text() for text in figure.texts if text.get_fontweight() == "bold"]
    assert set(bold) == {"P", "TTP", "b"}
    marks = [line for line in p.lines if len(xs(line)) == 1]
    assert [line.get_markerfacecolor() for line in marks] == [PAGE, SERIES[1]]
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert all(low < e < high for span in spans_of(axes).values() for e in span)
    # Side by side, or P above TTP.
    one, other = (axes.get_position() for axes in figure.axes)
    if width == WIDE:
        assert one.x1 < other.x0 and one.y0 == other.y0
    else:
        assert one.y0 > other.y1 and one.x0 == other.x0
        assert one.width > 0.45


def test_a_value_far_from_the_best_is_told_at_the_edge():
    near = [figures.Row(f"n{k}", False, (Interval(k, k - 1.0, k + 1.0),)) for k in (40, 41)]
    far = figures.Row("far", False, (Interval(2.5, 2.0, 3.0),))
    figure = figures.intervals("t", ["P"], [*near, far], METRICS["exact_match"])
    (axes,) = figure.axes
    assert axes.get_xlim()[0] > 30 and "← 2.5" in texts(figure)
    assert set(spans_of(axes)) == {0.5, 1.5}
    # One that stands out is shown where it is.
    rows = [*near, far._replace(stands_out=True)]
    figure = figures.intervals("t", ["P"], rows, METRICS["exact_match"])
    assert set(spans_of(figure.axes[0])) == {0.5, 1.5, 2.5}
    # Lower is better: what is far above the best is at the right edge.
    more = figures.Row("far", False, (Interval(90.0, 89.0, 91.0),))
    figure = figures.intervals("t", ["P"], [*near, more], METRICS["nll"])
    assert "90.00 →" in texts(figure)


def test_differences_have_a_line_at_zero():
    row = figures.Row("b", True, (Interval(2.0, 1.5, 2.25),), 1)
    figure = figures.intervals("t", ["P"], [row], METRICS["nll"], zero=True)
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert low < 0 < 2.25 < high
    assert [0.0, 0.0] in [xs(line) for line in axes.lines]


def test_rows_without_a_value_are_empty():
    none = Interval.none(float("nan"), "")
    rows = [figures.Row("a", True, (none, Interval(1.0, 0.5, 1.5)))]
    figure = figures.intervals("t", ["P", "TTP"], rows, METRICS["nll"])
    assert spans_of(figure.axes[1]) == {0.5: (1.0, 0.5, 1.5)}
    assert not figure.axes[0].lines


def test_score_intervals(run):
    drawing = run_figures.score_intervals([run], "nll")
    figure = drawing.make(WIDE)
    p, ttp = figure.axes
    names = ("base", "global", "local", "instance")
    expected = {k + 0.5: (v, v - 0.125, v + 0.375) for k, v in enumerate((1.0, 2.0, 3.0, 4.0))}
    assert spans_of(p) == expected
    more = {y: tuple(e + 0.5 for e in span) for y, span in expected.items()}
    assert spans_of(ttp) == more
    assert [text for text in texts(figure) if text in names] == list(names)
    assert drawing.caption.startswith("Left is better")
    assert run_figures.score_intervals([run], "rouge1").caption.startswith("Right is better")
    assert figure.get_label() == "P and TTP by response NLL, nats"


@WIDTHS
def test_matrices(run, width):
    assert run.evaluation is not None
    for metric, start, best in (("nll", 4.0, 0), ("exact_match", 26.0, 2)):
        drawing = run_figures.matrix(run, run.evaluation, "instance", metric, is_half=False)
        figure = drawing.make(width)
        numbers = [t for t in figure.texts if re.fullmatch(r"[\d.]+", t.get_text())]
        digits = 1 if metric == "exact_match" else 2
        # Rows are clients, columns tasks: a client adds 1, a task 0.1.
        told = [f"{start + c + 0.1 * t:.{digits}f}" for c in range(3) for t in range(3)]
        assert [text.get_text() for text in numbers] == told
        across, up = zip(*(text.get_position() for text in numbers), strict=True)
        assert list(across[:3]) == sorted(set(across))
        assert list(up[::3]) == sorted(set(up), reverse=True)
        heads = [t for t in figure.texts if t.get_text() in TASKS]
        assert [text.get_text() for text in heads] == list(TASKS)
        cells, frames = figure.axes[0].collections
        # The better in its column is the darker.
        strength = np.asarray(cells.get_facecolor())[:, 3].reshape(3, 3)
        assert (strength.argmax(axis=0) == best).all() and strength.max() > 0.9
        assert (strength[2 - best] < 0.06).all()
        # Own tasks lie on the diagonal here.
        assert isinstance(frames, PolyCollection)
        first = [corners(path)[0] for path in frames.get_paths()]
        w = figure.axes[0].get_xlim()[1] / 3
        h = figure.axes[0].get_ylim()[0] / 3
        assert [(int(x // w), int(y // h)) for x, y in first] == [(0, 0), (1, 1), (2, 2)]


def test_own_cells_are_the_clients_own():
    """Two clients of one task, and one of two: no diagonal."""
    scores: dict[str, dict[str, float]] = {c: dict.fromkeys(TASKS, 1.0) for c in HOSTILE}
    own = {HOSTILE[0]: ["e"], HOSTILE[1]: ["e"], HOSTILE[2]: ["a<b", "c&d"]}
    figure = heat_map.matrix("t", scores, own, METRICS["nll"])
    frames = figure.axes[0].collections[1]
    w, h = figure.axes[0].get_xlim()[1] / 3, figure.axes[0].get_ylim()[0] / 3
    first = [corners(path)[0] for path in frames.get_paths()]
    assert [(int(y // h), int(x // w)) for x, y in first] == [(0, 2), (1, 2), (2, 0), (2, 1)]


def test_many_tasks_make_a_wide_matrix():
    scores = {"a": {f"t{k}": float(k) for k in range(60)}}
    figure = heat_map.matrix("t", scores, {}, METRICS["nll"], width=NARROW)
    assert figure.get_size_inches()[0] * 96 > 60 * 30


def test_losses_over_rounds(run):
    for drawing, start, rounds in zip(
        run_figures.training_losses(run), (3.0, 5.0), ([1, 2, 3], [2, 3]), strict=True
    ):
        figure = drawing.make(NARROW)
        (axes,) = figure.axes
        *clients, mean = map(curve, axes.lines)
        # Clients are 1/8 apart, and the mean is the second's; a round takes 1 off.
        for line, more in zip([*clients, mean], (0, 0.125, 0.25, 0.125), strict=True):
            assert line == [(r, pytest.approx(start + 1 - r + more)) for r in rounds]
        assert axes.lines[-1].get_linewidth() > axes.lines[0].get_linewidth()
        assert "mean" in texts(figure) and "loss, nats a token" in texts(figure)
    assert [d.name for d in run_figures.training_losses(run)] == [
        "training_feddpa_f_global",
        "training_feddpa_f_local",
    ]


def test_curves(run):
    assert run.comparison is not None
    own, foreign = [1 + w / 8 for w in range(9)], [4 - w / 8 for w in range(9)]
    drawings = run_figures.weight_curves(run, run.comparison)
    for drawing, expected in zip(drawings, ((own, foreign), (foreign, own)), strict=True):
        figure = drawing.make(NARROW)
        (axes,) = figure.axes
        bands = [c for c in axes.collections if isinstance(c, FillBetweenPolyCollection)]
        for line, band, values, name, colour in zip(
            axes.lines, bands, expected, ("own tasks", "foreign tasks"), SERIES, strict=False
        ):
            assert curve(line) == [(w / 8, v) for w, v in enumerate(values)]
            edge = [y for _, y in corners(band.get_paths()[0])]
            assert {round(y, 6) for y in edge} == {
                round(v + e, 6) for v in values for e in (-0.125, 0.375)
            }
            # Each name has its line's colour and stands at its end.
            (label,) = [t for t in figure.texts if t.get_text() == name]
            assert to_hex(label.get_color()) == to_hex(line.get_color()) == colour
            box, (low, high) = axes.get_position(), axes.get_ylim()
            end = box.y0 + (values[-1] - low) / (high - low) * box.height
            assert label.get_position()[1] == pytest.approx(end, abs=0.03)
            assert label.get_position()[0] > box.x1


def test_rule_intervals(run):
    assert run.comparison is not None
    figure = run_figures.rule_intervals(run, run.comparison).make(WIDE)
    p, ttp = figure.axes
    starts = {0.5: 1.25, 1.5: 2.25, 2.5: 3.25}
    assert spans_of(p) == {y: (v, v - 0.125, v + 0.375) for y, v in starts.items()}
    assert spans_of(ttp) == {y: (v + 0.5, v + 0.375, v + 0.875) for y, v in starts.items()}
    blue = [line for line in p.lines if to_hex(line.get_color()) == SERIES[0]]
    assert {ys(line)[0] for line in blue} == {0.5}  # run exactly: the paper's


@WIDTHS
def test_boxes_of_weights(width):
    rows = [("one", {"own": [0.1, 0.2, 0.4, 0.7, 0.9], "foreign": [0, 0.05, 0.15, 0.3, 1]})]
    figure = figures.weights("t", [*rows, ("two", {"own": [0, 0.25, 0.5, 0.75, 1]})], width=width)
    (axes,) = figure.axes
    assert axes.get_xlim() == (0, 1)
    whiskers, medians = axes.lines[::2], axes.lines[1::2]
    assert [tuple(xs(line)) for line in whiskers] == [(0.1, 0.9), (0, 1), (0, 1)]
    assert [xs(line)[0] for line in medians] == [0.4, 0.15, 0.5]
    paths = [path for c in axes.collections for path in c.get_paths()]
    boxes = [[x for x, _ in corners(path)] for path in paths]
    assert [(min(box), max(box)) for box in boxes] == [(0.2, 0.7), (0.05, 0.3), (0.25, 0.75)]
    for line, colour in zip(whiskers, (SERIES[0], SERIES[1], SERIES[0]), strict=True):
        assert to_hex(line.get_color()) == colour
    named = {t.get_text(): to_hex(t.get_color()) for t in figure.texts}
    assert (named["own tasks"], named["foreign tasks"]) == (SERIES[0], SERIES[1])


def test_paired_differences(make_run):
    runs = read_runs([make_run("a"), make_run("b", method="fedit", nll=1.25)])
    drawing = run_figures.paired_intervals(runs, "nll")
    assert drawing is not None
    p, ttp = drawing.make(WIDE).axes
    for axes in (p, ttp):
        assert xs(axes.lines[-1])[0] == pytest.approx(0.25)
    assert run_figures.paired_intervals(runs, "rouge1") is None  # no answer has its own


def test_better_cells_are_darker():
    for lower, shares in ((True, [1.0, 0.75, 0.0]), (False, [0.0, 0.25, 1.0])):
        column = [1.0, 2.0, 5.0]
        found = [heat_map.better_share(v, column, lower_is_better=lower) for v in column]
        assert found == pytest.approx(shares)
    assert heat_map.better_share(1.0, [1.0, 1.0], lower_is_better=True) == 0.5


def test_ticks_have_no_digit_too_many():
    assert [number(v) for v in (0.1 + 0.2, -2.0, 1e6, 0)] == ["0.3", "−2", "1000000", "0"]


def test_the_users_own_style_changes_nothing(run):
    drawing = run_figures.score_intervals([run], "nll")
    before = drawing.make(WIDE)
    settings = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"text.usetex": True, "axes.grid": False, "font.size": 30.0}):
        after = drawing.make(WIDE)
    assert [t.get_fontsize() for t in before.texts] == [t.get_fontsize() for t in after.texts]
    assert not any(text.get_usetex() for text in after.texts)
    assert dict(matplotlib.rcParams) == settings
