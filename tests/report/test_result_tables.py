"""Every number of a table, by hand; and what its files hold."""

import csv
import io
import json
import math

import pytest

from feddpa_jax.evaluate.interval import KINDS, LEGEND, Estimate, Interval
from feddpa_jax.report import result_tables
from feddpa_jax.report.content import Run, read_runs
from feddpa_jax.report.result_tables import Column, Table, score_table
from feddpa_jax.report.scores import MEASURES
from feddpa_jax.report.task_table import task_table
from tests.report.conftest import estimate, scores

NLL_ROWS = [
    # mode, P, TTP: the modes' P are 1 apart, TTP is 0.5 more; intervals from -0.125 to +0.375 over
    # instances, from -0.25 to +0.75 over clients.
    ("feddpa_f", "base", "1.00 [0.88, 1.38] (0.75, 1.75)", "1.50 [1.38, 1.88] (1.25, 2.25)"),
    ("feddpa_f", "global", "2.00 [1.88, 2.38] (1.75, 2.75)", "2.50 [2.38, 2.88] (2.25, 3.25)"),
    ("feddpa_f", "local", "3.00 [2.88, 3.38] (2.75, 3.75)", "3.50 [3.38, 3.88] (3.25, 4.25)"),
    ("feddpa_f", "instance", "4.00 [3.88, 4.38] (3.75, 4.75)", "4.50 [4.38, 4.88] (4.25, 5.25)"),
]


@pytest.fixture
def run(make_run) -> Run:
    (run,) = read_runs([make_run("one")])
    return run


def test_scores(run):
    table = result_tables.score_table([run], "nll")
    assert table.headings() == ["run", "mode", "P: own task", "TTP: all tasks"]
    assert table.rows() == NLL_ROWS
    assert table.marked == {3}
    assert table.caption == f"Response NLL, nats (lower is better). {LEGEND}"
    table = result_tables.score_table([run], "exact_match")
    assert table.rows()[1] == (
        *("feddpa_f", "global"),
        *("22.0 [21.9, 22.4] (21.8, 22.8)", "22.5 [22.4, 22.9] (22.2, 23.2)"),
    )
    assert "higher is better" in table.caption


def test_frames_have_numbers(run):
    frame = result_tables.score_table([run], "nll").to_frame()
    names = [
        name
        for heading in ("P: own task", "TTP: all tasks")
        for name in (
            heading,
            *(
                f"{heading}, {kind}, {end}"
                for kind in ("over instances", "over clients", "over all")
                for end in ("low", "high")
            ),
        )
    ]
    assert list(frame.columns) == ["run", "mode", *names]
    local = frame.iloc[2]
    assert local[names[:5]].tolist() == [3.0, 2.875, 3.375, 2.75, 3.75]
    assert local[names[7:12]].tolist() == [3.5, 3.375, 3.875, 3.25, 4.25]
    assert local[[*names[5:7], *names[12:]]].isna().all()
    assert frame["P: own task"].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_rules(run):
    assert run.comparison is not None
    table = result_tables.rule_table("a", run.comparison)
    rows = {row[0]: row[1:] for row in table.rows()}
    assert list(rows) == ["paper (cosine)", "global alone (constant)", "bound: <b>"]
    columns = table.headings()[2:]
    assert columns[:4] == ["NLL: P", "NLL: TTP", "exact match: P", "exact match: TTP"]
    assert columns[4:8] == [f"{name}, minus the paper's" for name in columns[:4]]
    exactly = [*columns[:4], "ROUGE-1: P", "ROUGE-1: TTP"]
    assert columns[8:14] == [f"{name}, run exactly" for name in exactly]
    assert columns[14:] == [f"{name}, minus the paper's, stands over" for name in columns[:4]]
    values = [(1.25, 3), (1.75, 3), (20, 1), (20.5, 1), (-3, 3), (-2.5, 3), (-30, 1), (-29.5, 1)]
    values += [(4, 3), (4.5, 3), (40, 1), (40.5, 1), (50, 1), (50.5, 1)]
    assert rows["paper (cosine)"] == (
        "0.5 to local 0",
        *(estimate(value).text(digits) for value, digits in values),
        *("",) * 4,
    )
    # One rule is set against the paper's: its differences stand, those of a bound are not asked.
    other = ("0.5 to local 1", estimate(2.25).text(3), estimate(2.75).text(3))
    assert rows["global alone (constant)"][:3] == other
    assert rows["global alone (constant)"][9:] == (*("",) * 6, *("instances, clients",) * 4)
    assert rows["bound: <b>"][-4:] == ("",) * 4
    assert "for 2 differences (P and TTP of every row)" in table.caption
    assert rows["bound: <b>"][0] == "a bound, no rule"
    assert table.marked == {0}
    assert table.to_frame()["NLL: P, run exactly"].isna().tolist() == [False, True, True]


def test_costs(run):
    table = result_tables.cost_table([run])
    assert table.headings() == [
        *("run", "lines", "real tokens", "real, % of computed", "seconds", "real tokens a second"),
        *("MB received a client", "MB sent a client"),
    ]
    # 1000 + 1010 + 1020; of 1250 + 1251 + 1252; 2 + 3 + 4 s; 0.5 + 1 + 1.5 MB; 0.25 MB three times.
    assert table.rows() == [("feddpa_f", "3", "3,030", "81", "9", "337", "3.00", "0.75")]


@pytest.mark.parametrize("each", [2, 8])
def test_differences_between_runs(make_run, each):
    first = make_run("a", each=each)
    others = [make_run(name, method=name, nll=1.25, each=each) for name in ("fedit", "ditto")]
    file = others[0] / "eval" / "instances.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["scores"]["exact_match"] /= 2  # 100 on own tasks, 0 on the others
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table, apart = result_tables.paired_table(read_runs([first, *others]))
    assert table is not None and apart == []
    measures = [
        f"{name}: {z}" for name in ("exact match, %", "response NLL, nats") for z in MEASURES
    ]
    assert table.headings() == [
        "run",
        *(name for measure in measures for name in (measure, f"{measure} stands over")),
    ]
    # Minus the first: 50 less on the own task, one of three; NLL 0.25 more everywhere.
    if each == 2:
        fewer = ["-50.0 [–] (–)", "–", "-16.7 [–] (–)", "–"]
        same = ["0.0 [–] (–)", "–"] * 2
        assert "2 test instances of task a<b, 4 of each task are needed" in table.caption
    else:
        # 24 instances are all alike: the rule of three, 3 * 100 / 24.
        fewer = ["-50.0 [-62.5, -37.5] (–)", "instances", "-16.7 [-29.2, -4.2] (–)", "instances"]
        same = ["0.0 [-12.5, 12.5] (–)", "–"] * 2
        assert "No interval over clients: 3 clients count, 4 are needed." in table.caption
    # Of NLL no span is known, so where nothing varies there is no interval.
    nll = ["0.25 [–] (–)", "–"] * 2
    assert table.rows() == [("fedit, instance", *fewer, *nll), ("ditto, instance", *same, *nll)]
    assert table.caption.startswith("Minus feddpa_f, instance: differences on the same test")
    assert "for 4 differences (P and TTP of every row)" in table.caption


def test_fields_that_differ(make_run):
    runs = read_runs([make_run("a"), make_run("b", method="fedit")])
    table = result_tables.difference_table(runs)
    assert table.headings() == ["field", "feddpa_f", "fedit"]
    assert table.rows() == [("fed.method", "feddpa_f", "fedit")]
    whole = result_tables.fields_table("a", "A", runs[0].config).rows()
    assert ("lora.targets", "q_proj, v_proj") in whole and ("seed", "0") in whole


TABLE = Table(
    "t",
    "50 % of a_b",
    [
        Column("na|me", ["=1+1", "a, b", "x & y"]),
        Column(
            "P",
            [
                Estimate(*(Interval(1.5, 1.25, high, 3.0) for high in (2.0, 3.0, 4.0))),
                None,
                Estimate.none(math.nan, ""),
            ],
            lambda v: v.text(1),
        ),
        Column("n", [1, 2, None]),
    ],
)


def test_csv():
    rows = list(csv.reader(io.StringIO(TABLE.to_csv())))
    ends = [f"P, {kind.replace('_', ' ')}, {end}" for kind in KINDS for end in ("low", "high")]
    assert rows == [
        ["na|me", "P", *ends, "n"],
        ["'=1+1", "1.5", "1.25", "2.0", "1.25", "3.0", "1.25", "4.0", "1.0"],
        ["a, b", *[""] * 7, "2.0"],
        ["x & y", *[""] * 8],
    ]


def test_markdown():
    assert TABLE.to_markdown().splitlines() == [
        "| na&#124;me | P | n |",
        "| --- | ---: | ---: |",
        "| =1+1 | 1.5 [1.2, 2.0] (1.2, 3.0) | 1 |",
        "| a, b |  | 2 |",
        "| x &amp; y | – |  |",
    ]


def test_latex():
    assert TABLE.to_latex().splitlines() == [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        r"\caption{50 \% of a\_b}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"na\textbar{}me & P & n \\",
        r"\midrule",
        r"=1+1 & 1.5 [1.2, 2.0] (1.2, 3.0) & 1 \\",
        r"a, b &  & 2 \\",
        r"x \& y & – &  \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


@pytest.fixture
def told_runs(make_run) -> list[Run]:
    """Two runs whose summaries say what the most common answers score, and of the rule's kind."""
    folders = [make_run("one"), make_run("other")]
    for folder in folders:
        file = folder / "eval" / "summary.json"
        told = json.loads(file.read_text())
        told |= {"most_common_answer": {"exact_match": scores(12.0)}, "transductive": True}
        file.write_text(json.dumps(told))
    return list(read_runs(folders))


def test_the_most_common_answer_and_a_transductive_rule(told_runs: list[Run]):
    """The answer that ignores the question has a row, and a rule's kind is said."""
    rows = score_table(told_runs[:1], "exact_match").rows()
    assert rows[-1][1:3] == ("most common answer", "12.0 [11.9, 12.4] (11.8, 12.8)")
    assert rows[-2][1] == "instance (transductive)"
    assert score_table(told_runs[:1], "nll").rows()[-1][1] == "instance (transductive)"
    # The same for all runs: one row for all.
    both = score_table(told_runs, "exact_match").rows()
    assert [row[1] for row in both].count("most common answer") == 1
    assert both[-1][0] == "–"


def test_scores_by_task(told_runs: list[Run]):
    """A difference in P comes from some tasks: own clients' means, and what they gain."""
    table = task_table(told_runs[:1], "exact_match")
    assert table is not None
    run = told_runs[0].label
    assert table.headings() == [
        *("task", "most common answer"),
        *(f"{run}: own clients", f"{run}: gain", f"{run}: all clients"),
    ]
    # instance starts at 26, the most common answers at 12; client and task add 1 and 0.1 each.
    assert table.rows() == [
        ("a<b", "13.0", "26.0", "+13.0", "27.0"),
        ("c&d", "13.1", "27.1", "+14.0", "27.1"),
        ("e", "13.2", "28.2", "+15.0", "27.2"),
    ]
    plain = task_table(told_runs[:1], "nll")
    assert plain is not None
    assert plain.headings()[1:] == [f"{run}: own clients", f"{run}: all clients"]
