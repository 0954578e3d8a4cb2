"""P against TTP: a point for each method and mode, with both intervals and its name."""

import itertools
import math
import subprocess
import sys
from typing import cast

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

import feddpa_jax.report
from feddpa_jax.evaluate.estimating import Summary
from feddpa_jax.evaluate.evaluation import Setting
from feddpa_jax.evaluate.interval import Estimate, Interval
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.evaluate.results import Evaluation
from feddpa_jax.report import plot_scores, run_figures
from feddpa_jax.report.content import read_runs
from feddpa_jax.report.plot_style import NARROW, PAGE, SERIES, WIDE, style, to_svg
from feddpa_jax.report.scatter import Point, contenders, p_against_ttp, spread
from tests.report.conftest import xs, ys

WIDTHS = pytest.mark.parametrize("width", [WIDE, NARROW])
NLL, EXACT = METRICS["nll"], METRICS["exact_match"]


def span(value: float, wide: float = 1.0) -> Interval:
    return Interval(value, value - 0.25 * wide, value + 0.75 * wide)


def point(name: str, p: float, ttp: float, *, mode="global", group=0, stands_out=False) -> Point:
    return Point(name, mode, group, stands_out, span(p), span(ttp, 2.0))


def crosses(axes) -> list[tuple]:
    """By point, in the order of drawing: P low, P, P high, TTP low, TTP, TTP high."""
    lines = [(xs(line), ys(line)) for line in axes.lines]
    found = []
    for across, up, middle in zip(lines[::3], lines[1::3], lines[2::3], strict=False):
        assert across[1] == middle[1] * 2 and up[0] == middle[0] * 2
        (p_low, p_high), (ttp_low, ttp_high) = across[0], up[1]
        found.append((p_low, middle[0][0], p_high, ttp_low, middle[1][0], ttp_high))
    return found


@WIDTHS
def test_a_point_for_each_method_and_mode(make_run, width):
    runs = read_runs([make_run("a"), make_run("b", method="fedit")])
    drawing = run_figures.front(runs, "nll")
    assert drawing is not None
    figure = drawing.make(width)
    axes = figure.axes[-1]  # of all modes
    expected = {
        (v - 0.125, v, v + 0.375, v + 0.375, v + 0.5, v + 0.875) for v in (1.0, 2.0, 3.0, 4.0)
    }
    found = crosses(axes)
    assert set(found) == expected and len(found) == 8
    names = [text.get_text() for text in figure.texts]
    for label in ("feddpa_f", "fedit"):
        for mode in ("base", "global", "local", "instance"):
            assert any(f"{label} {mode}" in name for name in names)
    bold = {text.get_text() for text in figure.texts if text.get_fontweight() == "bold"}
    assert bold - {"All modes"} == {"feddpa_f instance", "fedit instance"}
    # Lower is better: the axes run the other way.
    assert axes.get_xlim()[0] > axes.get_xlim()[1] and axes.get_ylim()[0] > axes.get_ylim()[1]
    assert "both axes run from high to low" in drawing.caption


def test_higher_is_better_to_the_right():
    figure = p_against_ttp([point("a", 1.0, 2.0), point("b", 2.0, 3.0)], EXACT)
    (axes,) = figure.axes
    assert crosses(axes) == [(0.75, 1.0, 1.75, 1.5, 2.0, 3.5), (1.75, 2.0, 2.75, 2.5, 3.0, 4.5)]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert left < 0.75 and right > 2.75 and low < 1.5 and high > 4.5
    told = [text.get_text() for text in figure.texts]
    assert "P, own task: exact match (higher is better) →" in told


def test_what_a_method_answers_with_stands_out():
    points = [point("a", 1.0, 2.0), point("b", 2.0, 3.0, group=1, stands_out=True)]
    figure = p_against_ttp(points, EXACT)
    faces = [line.get_markerfacecolor() for line in figure.axes[0].lines if len(xs(line)) == 1]
    assert faces == [PAGE, SERIES[1]]
    named = {t.get_text(): (t.get_fontweight(), to_hex(t.get_color())) for t in figure.texts}
    assert named["a"] == ("normal", SERIES[0]) and named["b"] == ("bold", SERIES[1])


def test_each_mode_has_its_marker():
    modes = ["base", "global", "local", "fixed", "instance", "mine"]
    points = [point(m, k / 10, k / 10, mode=m) for k, m in enumerate(modes)]
    figure = p_against_ttp(points, EXACT)
    markers = [line.get_marker() for line in figure.axes[0].lines if len(xs(line)) == 1]
    assert len(set(markers)) == len(modes)


FAR = [
    *(point("a", 40.0, 41.0), point("b", 41.0, 40.0), point("far", 0.0, 2.0)),
    point("a copy", 0.0, 2.0),
]


@WIDTHS
def test_points_near_the_best_are_shown_large(width):
    assert [p.name for p in contenders(FAR, EXACT)] == ["a", "b"]
    figure = p_against_ttp(FAR, EXACT, width)
    large, small = figure.axes
    assert len(crosses(large)) == 2 and len(crosses(small)) == 4
    assert large.get_xlim()[0] > 30 and small.get_xlim()[0] < 0
    names = [text.get_text() for text in figure.texts]
    assert "far, a copy" in names and "All modes" in names
    # The frame in the small plot holds those of the large one.
    frame = small.lines[-1]
    assert min(xs(frame)) < 39.75 and max(xs(frame)) > 41.75
    one, other = large.get_position(), small.get_position()
    if width == NARROW:
        assert one.y0 > other.y1
    else:
        assert one.x1 < other.x0


def test_the_bare_model_is_named_once():
    base = [point(f"{run} base", 0.0, 2.0, mode="base", group=k) for k, run in enumerate("xy")]
    names = [text.get_text() for text in p_against_ttp([*FAR[:2], *base], EXACT).texts]
    assert "base" in names and not any("x base" in name for name in names)


def test_all_are_near_where_leaving_some_out_gains_little():
    points = [point("a", 40.0, 41.0), point("b", 41.0, 40.0), point("c", 39.0, 38.0)]
    assert contenders(points, EXACT) == points
    assert contenders(FAR[:1] + FAR[2:], EXACT) == FAR[:1] + FAR[2:]  # one alone is no picture
    # What a method answers with is always among them.
    far = point("far", 0.0, 2.0, stands_out=True)
    assert far in contenders([*FAR, far], EXACT)


def test_names_do_not_hide_each_other():
    points = [point(f"n{k}", 1.0 + k / 1000, 1.0 + k / 1000) for k in range(30)]
    figure = p_against_ttp(points, EXACT)
    height = figure.get_size_inches()[1] * 96
    heights = sorted(t.get_position()[1] * height for t in figure.texts if t.get_text()[0] == "n")
    assert len(heights) == 30
    assert min(b - a for a, b in itertools.pairwise(heights)) > 15.9
    # In the order of TTP, from the top.
    order = sorted(
        (t for t in figure.texts if t.get_text()[0] == "n"), key=lambda t: -t.get_position()[1]
    )
    assert [t.get_text() for t in order] == [f"n{k}" for k in reversed(range(30))]


def test_places_are_spread():
    assert spread([5.0, 5.0, 5.0], 2.0, 0.0, 10.0) == [5.0, 7.0, 9.0]
    assert spread([9.0, 9.5, 10.0], 2.0, 0.0, 10.0) == [6.0, 8.0, 10.0]
    assert spread([], 2.0, 0.0, 10.0) == []


@WIDTHS
def test_long_names_stay_within_the_figure(width):
    points = [point("日本" * 60, 40.0, 41.0), point("W" * 99, 41.0, 40.0), FAR[2], FAR[3]]
    figure = p_against_ttp(points, EXACT, width)
    whole = figure.get_size_inches()[0] * 96
    renderer = FigureCanvasAgg(figure).get_renderer()
    scale = whole / (figure.get_size_inches()[0] * figure.dpi)
    for text in figure.texts:
        with style():
            box = text.get_window_extent(renderer)
        assert box.x0 * scale >= -1 and box.x1 * scale <= whole + 1, text.get_text()


def test_equal_points_and_points_without_p():
    none = Interval(math.nan, math.nan, math.nan)
    same = Interval(5.957, 5.957 - 1e-15, 5.957)
    points = [
        Point("a", "global", 0, False, same, same),
        Point("b", "local", 0, True, same, same),
        Point("c", "fixed", 0, False, none, same),
    ]
    figure = p_against_ttp(points, NLL)
    assert len(crosses(figure.axes[0])) == 2
    assert "nan" not in to_svg(figure).lower()
    with pytest.raises(ValueError, match="no mode has both P and TTP"):
        p_against_ttp(points[2:], NLL)


def scores_of(method: str, start: float) -> Evaluation:
    def summary(value: float) -> Summary:
        one, other = (Estimate(*[span(v)] * 3) for v in (value, value + 1))
        return Summary(one, other, np.zeros((1, 1)), 1)

    summaries = {
        mode: {"exact_match": summary(start + k), "nll": summary(start - k)}
        for k, mode in enumerate(("global", "instance"))
    }
    settings = {"method": method, "answers_with": "instance"}
    setting = cast(Setting, None)  # Neither clients nor instances are drawn.
    return Evaluation(settings, summaries, {}, {}, {}, setting)


def test_plot_scores():
    one, other = scores_of("feddpa_t", 10.0), scores_of("fedit", 12.0)
    figure = plot_scores(one)
    assert [c[1] for c in crosses(figure.axes[0])] == [10.0, 11.0]
    assert {"global", "instance"} <= {t.get_text() for t in figure.texts}
    figure = plot_scores(one, other, metric="nll")
    assert sorted(c[1] for c in crosses(figure.axes[0])) == [9.0, 10.0, 11.0, 12.0]
    assert {"feddpa_t instance", "fedit global"} <= {t.get_text() for t in figure.texts}
    figure = plot_scores(one.summaries, other.summaries, names=["mine", "yours"])
    assert "yours instance" in {t.get_text() for t in figure.texts}
    assert figure.get_size_inches()[0] * 96 == pytest.approx(680)
    with pytest.raises(ValueError, match="'rouge1' was not evaluated, but exact_match, nll"):
        plot_scores(one, metric="rouge1")
    with pytest.raises(ValueError, match="names: 1 names for 2 evaluations"):
        plot_scores(one, other, names=["one"])


def test_the_package_waits_with_matplotlib():
    code = (
        "import feddpa_jax, feddpa_jax.report, feddpa_jax.report.content, sys; "
        "print([n for n in ('matplotlib', 'pandas', 'jinja2') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert feddpa_jax.report.plot_scores.__doc__
