"""Every number of a table and every point of a plot, by hand."""

import json
import re
import xml.etree.ElementTree
from collections.abc import Callable

import pytest

from feddpa_jax.report import figures
from feddpa_jax.report.content import Run, read_runs
from feddpa_jax.report.page import make_page
from tests.report.conftest import HOSTILE, TASKS

NLL_ROWS = (
    # mode, P, TTP: the modes' P are 1 apart, TTP is 0.5 more; intervals from -0.125 to +0.375.
    ["base", "1.00 [0.88, 1.38]", "1.50 [1.38, 1.88]"],
    ["global", "2.00 [1.88, 2.38]", "2.50 [2.38, 2.88]"],
    ["local", "3.00 [2.88, 3.38]", "3.50 [3.38, 3.88]"],
    ["instance", "4.00 [3.88, 4.38]", "4.50 [4.38, 4.88]"],
)


class Plot:
    """A plot's elements: texts with their places, and points in the units of its axes."""

    def __init__(self, svg: str):
        self.root = xml.etree.ElementTree.fromstring(svg)

    def all(self, tag: str, kind: str = "") -> list[xml.etree.ElementTree.Element]:
        found = self.root.iter(tag)
        return [
            element for element in found if kind in element.get("class", "").split() or not kind
        ]

    def texts(self, kind: str = "") -> dict[str, tuple[float, float]]:
        return {
            element.text or "": (float(element.get("x", "nan")), float(element.get("y", "nan")))
            for element in self.all("text", kind)
        }


def value_of(element: xml.etree.ElementTree.Element, name: str) -> float:
    return float(element.get(name, "nan"))


@pytest.fixture
def run(make_run) -> Run:
    (run,) = read_runs([make_run("one")])
    return run


def test_score_tables(run):
    table = figures.score_table([run], "nll")
    assert table.columns == ["run", "mode", "P: own task", "TTP: all tasks"]
    assert table.rows == [["feddpa_f", *row] for row in NLL_ROWS]
    assert table.marked == {3}
    assert "lower is better" in table.caption
    table = figures.score_table([run], "exact_match")
    assert table.rows[1] == ["feddpa_f", "global", "22.0 [21.9, 22.4]", "22.5 [22.4, 22.9]"]
    assert "higher is better" in table.caption


def interval_rows(svg: str, panels: int) -> list[dict[str, list[float]]]:
    """By panel and row name: value, low, high."""
    plot = Plot(svg)
    names = sorted((at[1], text) for text, at in plot.texts().items() if at[0] == 190.0)
    width = (860.0 - 190 - 44 * panels) / panels
    found = []
    for p in range(panels):
        left = 190 + p * (width + 44) + 22
        marks = [
            (value_of(element, "x"), float(element.text or ""))
            for element in plot.all("text", "mute")
            if left - 1 <= value_of(element, "x") <= left + width + 1
        ]
        (a, one), *_, (b, other) = sorted(marks)
        rows: dict[str, list[float]] = {}
        for y, name in names:

            def value(at: float, a=a, b=b, one=one, other=other) -> float:
                return round(one + (at - a) * (other - one) / (b - a), 2)

            for circle in plot.all("circle"):
                x = value_of(circle, "cx")
                if abs(value_of(circle, "cy") - y + 4) < 1 and left - 1 <= x <= left + width + 1:
                    rows[name] = [value(x)]
            for line in plot.all("line", "bar"):
                x = value_of(line, "x1")
                if abs(value_of(line, "y1") - y + 4) < 1 and left - 1 <= x <= left + width + 1:
                    rows[name] += [value(x), value(value_of(line, "x2"))]
        found.append(rows)
    return found


def near(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=0.02), name


def test_score_plots(run):
    svg = figures.score_plot([run], "nll")
    p, ttp = interval_rows(svg, 2)
    near(
        p,
        {
            m: [v, v - 0.125, v + 0.375]
            for m, v in zip(("global", "local", "instance"), (2, 3, 4), strict=True)
        },
    )
    near(
        ttp,
        {
            m: [v, v - 0.125, v + 0.375]
            for m, v in zip(("global", "local", "instance"), (2.5, 3.5, 4.5), strict=True)
        },
    )
    plot = Plot(svg)
    strong = plot.texts("strong")
    assert list(strong) == ["P: own task", "instance", "TTP: all tasks"]
    assert strong["P: own task"][0] < 500 < strong["TTP: all tasks"][0]
    # What the method answers with has the first colour.
    assert len(plot.all("circle", "s0")) == 2
    (y,) = {value_of(circle, "cy") for circle in plot.all("circle", "s0")}
    assert y == pytest.approx(plot.texts()["instance"][1] - 4)
    assert [element.text for element in plot.all("title")] == ["P and TTP by response NLL, nats"]


def test_heat_maps(run):
    for metric, start, darkest in (("nll", 4.0, 0), ("exact_match", 26.0, 2)):
        plot = Plot(figures.heat(run, "instance", metric))
        cells = plot.all("rect")
        assert len(cells) == 9
        # Rows are clients, columns tasks: a client adds 1, a task 0.1.
        numbers = [t for t in plot.all("text") if re.fullmatch(r"[\d.]+", t.text or "")]
        digits = 1 if metric == "exact_match" else 2
        told = [t.text for t in numbers]
        assert told == [f"{start + c + 0.1 * t:.{digits}f}" for c in range(3) for t in range(3)]
        xs, ys = ([value_of(t, name) for t in numbers] for name in ("x", "y"))
        assert xs[:3] == sorted(set(xs)) and ys[::3] == sorted(set(ys))
        rows = [text for text, at in plot.texts().items() if at[0] == 142.0]
        assert rows == [name if len(name) <= 20 else name[:19] + "…" for name in HOSTILE]
        tilted = [t for t in plot.all("text") if t.get("transform")]
        assert [t.text for t in tilted] == list(TASKS)
        places = [
            float(re.findall(r"translate\(([\d.]+)", t.get("transform", ""))[0]) for t in tilted
        ]
        assert places == sorted(places) and abs(places[0] - xs[0]) < 10
        # Own tasks lie on the diagonal here; the better in its column is the darker.
        assert [cell.get("class") == "own" for cell in cells] == [True, False, False, False] * 2 + [
            True
        ]
        red = [int(re.findall(r"rgb\((\d+)", cell.get("fill", ""))[0]) for cell in cells]
        for column in range(3):
            assert [red[3 * row + column] for row in range(3)].index(8) == darkest
            assert red[3 * (2 - darkest) + column] == 238


def test_own_cells_are_the_clients_own(run):
    """Two clients of one task, and one of two: no diagonal."""
    assert run.summary is not None
    own = {HOSTILE[0]: ["e"], HOSTILE[1]: ["e"], HOSTILE[2]: ["a<b", "c&d"]}
    run.summary["own_tasks"] = own  # type: ignore[index]
    cells = Plot(figures.heat(run, "local", "nll")).all("rect")
    assert [c.get("class") == "own" for c in cells] == [
        *(False, False, True),
        *(False, False, True),
        *(True, True, False),
    ]


def test_losses_over_rounds(run):
    (phase, svg), (other, other_svg) = figures.training(run)
    assert (phase, other) == ("global", "local")
    for drawn, start, rounds in ((svg, 3.0, [1, 2, 3]), (other_svg, 5.0, [2, 3])):
        plot = Plot(drawn)
        x_of, y_of = _axes(plot)
        lines = [
            [
                (round(x_of(float(x)), 1), round(y_of(float(y)), 2))
                for x, y in (point.split(",") for point in line.get("points", "").split())
            ]
            for line in plot.all("polyline")
        ]
        # Clients are 1/8 apart, and the mean is the second's; a round takes 1 off.
        for line, more in zip(lines, (0, 0.125, 0.25, 0.125), strict=True):
            assert [x for x, _ in line] == rounds
            assert [y for _, y in line] == pytest.approx(
                [start + 1 - r + more for r in rounds], abs=0.02
            )
        assert [line.get("class") for line in plot.all("polyline")] == ["thin s0"] * 3 + ["line s0"]
        assert "mean" in plot.texts("t0")


def _axes(plot: Plot) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """From coordinates of a line plot to values."""
    marks = [
        ((value_of(t, "x"), value_of(t, "y")), float(t.text or ""), t.get("text-anchor"))
        for t in plot.all("text", "mute")
        if re.fullmatch(r"-?[\d.]+", t.text or "")
    ]
    found = []
    for anchor, place, shift in (("middle", 0, 0.0), ("end", 1, -4.0)):
        (a, one), *_, (b, other) = [
            (at[place] + shift, value) for at, value, end in marks if end == anchor
        ]
        found.append(
            lambda at, a=a, b=b, one=one, other=other: one + (at - a) * (other - one) / (b - a)
        )
    return found[0], found[1]


def points(
    text: str, x_of: Callable[[float], float], y_of: Callable[[float], float]
) -> list[tuple[float, float]]:
    pairs = (point.split(",") for point in text.split())
    return [(x_of(float(x)), y_of(float(y))) for x, y in pairs]


def test_curves(run):
    assert run.laboratory is not None
    for metric, own_first in (("nll", True), ("exact_match", False)):
        plot = Plot(figures.curve_plot(run.laboratory, metric))
        x_of, y_of = _axes(plot)
        one, other = [points(line.get("points", ""), x_of, y_of) for line in plot.all("polyline")]
        bands = [points(band.get("points", ""), x_of, y_of) for band in plot.all("polygon")]
        own, foreign = [1 + w / 8 for w in range(9)], [4 - w / 8 for w in range(9)]
        expected = (own, foreign) if own_first else (foreign, own)
        for line, band, values in zip((one, other), bands, expected, strict=True):
            assert [x for x, _ in line] == pytest.approx([w / 8 for w in range(9)], abs=0.01)
            assert [y for _, y in line] == pytest.approx(values, abs=0.03)
            edge = [v + 0.375 for v in values] + [v - 0.125 for v in values[::-1]]
            assert [y for _, y in band] == pytest.approx(edge, abs=0.03)
        kinds = [line.get("class") for line in plot.all("polyline")]
        assert kinds == ["line s0", "line s1"]
        (name,), (other_name,) = plot.texts("t0"), plot.texts("t1")
        assert (name, other_name) == ("own tasks", "foreign tasks")
        # Each name stands at its line's end.
        for label, line in (("own tasks", one), ("foreign tasks", other)):
            assert y_of(plot.texts()[label][1] - 4) == pytest.approx(line[-1][1], abs=0.2)


def test_rule_tables(run):
    table = figures.rule_table(run)
    rows = {row[0]: list(row[1:]) for row in table.rows}
    assert list(rows) == ["paper (cosine)", "global alone (constant)", "bound: <b>"]
    columns = table.columns[2:]
    assert columns[:4] == ["NLL: P", "NLL: TTP", "exact match: P", "exact match: TTP"]
    assert columns[4:8] == [f"{name}, minus the paper's" for name in columns[:4]]
    exactly = [*columns[:4], "ROUGE-1: P", "ROUGE-1: TTP"]
    assert columns[8:] == [f"{name}, run exactly" for name in exactly]
    assert rows["paper (cosine)"] == [
        "0.5 to local 0",
        *("1.250 [1.125, 1.625]", "1.750 [1.625, 2.125]"),  # test, not validation's 7
        *("20.0 [19.9, 20.4]", "20.5 [20.4, 20.9]"),
        *("-3.000 [-3.125, -2.625]", "-2.500 [-2.625, -2.125]"),
        *("-30.0 [-30.1, -29.6]", "-29.5 [-29.6, -29.1]"),
        *("4.000 [3.875, 4.375]", "4.500 [4.375, 4.875]"),
        *("40.0 [39.9, 40.4]", "40.5 [40.4, 40.9]"),
        *("50.0 [49.9, 50.4]", "50.5 [50.4, 50.9]"),
    ]
    assert rows["global alone (constant)"][:3] == [
        *("0.5 to local 1", "2.250 [2.125, 2.625]", "2.750 [2.625, 3.125]")
    ]
    assert rows["global alone (constant)"][9:] == [""] * 6
    assert rows["bound: <b>"][0] == "a bound, no rule"
    assert table.marked == {0}


def test_rule_plots(run):
    p, ttp = interval_rows(figures.rule_plot(run), 2)
    starts = {"paper (cosine)": 1.25, "global alone (constant)": 2.25, "bound: <b>": 3.25}
    near(p, {name: [v, v - 0.125, v + 0.375] for name, v in starts.items()})
    near(ttp, {name: [v + 0.5, v + 0.375, v + 0.875] for name, v in starts.items()})
    assert len(Plot(figures.rule_plot(run)).all("circle", "s0")) == 2  # run exactly: the paper's


def test_boxes_of_weights(run):
    svg = figures.weight_plot(
        [("one", {"own": [0.1, 0.2, 0.4, 0.7, 0.9], "foreign": [0, 0.05, 0.15, 0.3, 1]})]
    )
    plot = Plot(svg)
    at = {text: x for text, (x, _) in plot.texts("mute").items() if re.fullmatch(r"[\d.]+", text)}

    def value(x: float) -> float:
        return round((x - at["0"]) / (at["1"] - at["0"]), 2)

    for series, quantiles in (("s0", (0.1, 0.2, 0.4, 0.7, 0.9)), ("s1", (0, 0.05, 0.15, 0.3, 1))):
        (whisker,) = plot.all("line", series)
        assert (value(value_of(whisker, "x1")), value(value_of(whisker, "x2"))) == quantiles[::4]
        _, box = plot.all("rect", series)
        left = value_of(box, "x")
        assert (value(left), value(left + value_of(box, "width"))) == quantiles[1:4:2]
        y = value_of(whisker, "y1")
        (median,) = [
            m for m in plot.all("line", "median") if value_of(m, "y1") < y < value_of(m, "y2")
        ]
        assert value(value_of(median, "x1")) == quantiles[2]
    # The legend: own tasks have the first colour.
    own, foreign = plot.texts()["own tasks"], plot.texts()["foreign tasks"]
    legend = [value_of(plot.all("rect", s)[0], "x") for s in ("s0", "s1")]
    assert [own[0] - 18, foreign[0] - 18] == legend


def test_costs(run):
    table = figures.cost_table([run])
    assert table.columns == [
        *("run", "lines", "real tokens", "real, % of computed", "seconds", "real tokens a second"),
        *("MB received a client", "MB sent a client"),
    ]
    # 1000 + 1010 + 1020; of 1250 + 1251 + 1252; 2 + 3 + 4 s; 0.5 + 1 + 1.5 MB; 0.25 MB three times.
    assert table.rows == [["feddpa_f", "3", "3,030", "81", "9", "337", "3.00", "0.75"]]


def cards(page: str) -> list[tuple[str, str, str]]:
    kind = r'<div class="card"><span>(.*?)</span><b>(.*?)</b><span>(.*?)</span></div>'
    return re.findall(kind, page)


def test_main_numbers(run):
    page, _ = make_page([run])
    assert cards(page) == [
        ("P, ROUGE-1", "33.0", "32.9 to 33.4; instance mode"),
        ("TTP, ROUGE-1", "33.5", "33.4 to 33.9; instance mode"),
        ("P, exact match, %", "26.0", "25.9 to 26.4; instance mode"),
        ("TTP, exact match, %", "26.5", "26.4 to 26.9; instance mode"),
        ("P, response NLL, nats", "4.00", "3.88 to 4.38; instance mode"),
        ("TTP, response NLL, nats", "4.50", "4.38 to 4.88; instance mode"),
    ]


def test_the_best_of_several_runs(make_run):
    one, two = read_runs([make_run("one"), make_run("two", method="fedit")])
    assert two.summary is not None
    for metric, by in (("nll", 0.5), ("exact_match", 1.0)):
        for measure in ("P", "TTP"):
            for end in ("value", "low", "high"):
                two.summary["modes"]["instance"][metric][measure][end] += by
    page, _ = make_page([one, two])
    best = {title: (value, whose.rpartition("best: ")[2]) for title, value, whose in cards(page)}
    # The second has the greater exact match, which is better, and the greater NLL, which is worse.
    assert best["P, exact match, %"] == ("27.0", "fedit")
    assert best["TTP, exact match, %"] == ("27.5", "fedit")
    assert best["P, response NLL, nats"] == ("4.00", "feddpa_f")
    assert best["TTP, response NLL, nats"] == ("4.50", "feddpa_f")


def test_differences_between_runs(make_run):
    first, second = make_run("a"), make_run("b", method="fedit", nll=1.25)
    file = second / "eval" / "instances.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["scores"]["exact_match"] /= 2  # 100 on own tasks, 0 on the others
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    one, two = read_runs([first, second])
    table, apart = figures.paired_table([one, two], ["exact_match", "nll"])
    assert table is not None and apart == []
    assert table.columns == [
        "run",
        *("exact match, %: P", "exact match, %: TTP"),
        *("response NLL, nats: P", "response NLL, nats: TTP"),
    ]
    # The second minus the first: 50 less on the own task, one of three.
    exact = ["-50.0 [-50.0, -50.0]", "-16.7 [-16.7, -16.7]"]
    assert table.rows == [["fedit, instance", *exact, *["0.25 [0.25, 0.25]"] * 2]]
    assert table.caption.startswith("Minus feddpa_f, instance")


def test_fields_that_differ(make_run):
    runs = read_runs([make_run("a"), make_run("b", method="fedit")])
    table = figures.difference_table(runs)
    assert table.columns == ["field", "feddpa_f", "fedit"]
    assert table.rows == [["fed.method", "feddpa_f", "fedit"]]
