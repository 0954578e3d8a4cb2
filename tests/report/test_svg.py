"""Marks of axes, and where things are drawn."""

import itertools
import re

import pytest
from feddpa_jax.report.svg import Line, boxes, heat_map, intervals, lines, ticks


@pytest.mark.parametrize(
    ("low", "high"),
    [
        *((0.13, 0.87), (-3, 40), (1e-5, 3e-5), (2, 2), (0, 1e6), (-1, -0.9), (0, 0)),
        *((5.957, 5.957 + 1e-15), (-1e20, -1e20), (2e-14, 3e-14), (1e-300, 2e-300)),
    ],
)
def test_ticks_span_the_range(low, high):
    marks = ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 8
    steps = {round((b - a) / (marks[1] - marks[0]), 6) for a, b in itertools.pairwise(marks)}
    assert steps == {1.0}


def numbers(svg: str, tag: str, name: str) -> list[float]:
    return [float(n) for n in re.findall(rf'<{tag} [^>]*\b{name}="([-\d.]+)"', svg)]


def test_intervals_lie_on_their_axis():
    svg = intervals("t", ["P"], [("a", True, [(1.0, 0.5, 1.5)]), ("b", False, [(2.0, 2.0, 2.0)])])
    a, b = numbers(svg, "circle", "cx")
    bars = re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="bar', svg)
    # 0.5 to 1.5 around 1: as wide as from 1 to 2.
    assert float(bars[0][1]) - float(bars[0][0]) == pytest.approx(b - a, abs=0.2)
    assert (float(bars[0][0]) + float(bars[0][1])) / 2 == pytest.approx(a, abs=0.2)


def test_intervals_of_values_that_differ_by_rounding_alone():
    svg = intervals("t", ["P"], [("a", True, [(5.957, 5.957 - 1e-15, 5.957)])])
    (x,) = numbers(svg, "circle", "cx")
    assert 190 < x < 860


def test_the_better_is_the_darker_in_its_column():
    for lower in (True, False):
        svg = heat_map(
            "t", ["k"], ["x", "y"], [[1.0], [2.0]], [[True], [False]], lower_is_better=lower
        )
        red = [int(n) for n in re.findall(r"rgb\((\d+),", svg)]
        assert (red[0] < red[1]) == lower
        assert svg.count('class="own"') == 1


def test_lines_keep_their_points_within_the_frame():
    svg = lines(
        "t", "x", "y", [Line("<n>", [(0, 5.0), (1, 7.0)], 0, band=[(4.0, 6.0), (6.0, 8.0)])]
    )
    assert "&lt;n&gt;" in svg
    assert "<n>" not in svg
    points = [
        float(n)
        for n in re.findall(r'<polyline points="([^"]+)"', svg)[0].replace(",", " ").split()
    ]
    assert all(0 <= n <= 640 for n in points)
    assert points[3] < points[1]  # 7 stands above 5


def test_boxes_leave_out_what_is_not_there():
    both = {"own": [0, 0.25, 0.5, 0.75, 1], "foreign": None}
    svg = boxes("t", "w", [("a", both)])
    assert svg.count('class="median"') == 1
