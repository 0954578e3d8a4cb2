"""Every number of a table, by hand; and what its files hold."""

import csv
import io
import json
import math

import pytest

from feddpa_jax.evaluate.personalization import Interval
from feddpa_jax.report import result_tables
from feddpa_jax.report.content import Run, read_runs
from feddpa_jax.report.result_tables import Column, Table

NLL_ROWS = [
    # mode, P, TTP: the modes' P are 1 apart, TTP is 0.5 more; intervals from -0.125 to +0.375.
    ("feddpa_f", "base", "1.00 [0.88, 1.38]", "1.50 [1.38, 1.88]"),
    ("feddpa_f", "global", "2.00 [1.88, 2.38]", "2.50 [2.38, 2.88]"),
    ("feddpa_f", "local", "3.00 [2.88, 3.38]", "3.50 [3.38, 3.88]"),
    ("feddpa_f", "instance", "4.00 [3.88, 4.38]", "4.50 [4.38, 4.88]"),
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
    assert "lower is better" in table.caption
    table = result_tables.score_table([run], "exact_match")
    assert table.rows()[1] == ("feddpa_f", "global", "22.0 [21.9, 22.4]", "22.5 [22.4, 22.9]")
    assert "higher is better" in table.caption


def test_frames_have_numbers(run):
    frame = result_tables.score_table([run], "nll").to_frame()
    assert list(frame.columns) == [
        *("run", "mode", "P: own task", "P: own task, low", "P: own task, high"),
        *("TTP: all tasks", "TTP: all tasks, low", "TTP: all tasks, high"),
    ]
    assert frame.iloc[2].tolist() == ["feddpa_f", "local", 3.0, 2.875, 3.375, 3.5, 3.375, 3.875]
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
    assert columns[8:] == [f"{name}, run exactly" for name in exactly]
    assert rows["paper (cosine)"] == (
        "0.5 to local 0",
        *("1.250 [1.125, 1.625]", "1.750 [1.625, 2.125]"),
        *("20.0 [19.9, 20.4]", "20.5 [20.4, 20.9]"),
        *("-3.000 [-3.125, -2.625]", "-2.500 [-2.625, -2.125]"),
        *("-30.0 [-30.1, -29.6]", "-29.5 [-29.6, -29.1]"),
        *("4.000 [3.875, 4.375]", "4.500 [4.375, 4.875]"),
        *("40.0 [39.9, 40.4]", "40.5 [40.4, 40.9]"),
        *("50.0 [49.9, 50.4]", "50.5 [50.4, 50.9]"),
    )
    assert rows["global alone (constant)"][:3] == (
        *("0.5 to local 1", "2.250 [2.125, 2.625]", "2.750 [2.625, 3.125]"),
    )
    assert rows["global alone (constant)"][9:] == ("",) * 6
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


def test_differences_between_runs(make_run):
    first, second = make_run("a"), make_run("b", method="fedit", nll=1.25)
    file = second / "eval" / "instances.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["scores"]["exact_match"] /= 2  # 100 on own tasks, 0 on the others
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    one, two = read_runs([first, second])
    table, apart = result_tables.paired_table([one, two])
    assert table is not None and apart == []
    assert table.headings() == [
        "run",
        *("exact match, %: P", "exact match, %: TTP"),
        *("response NLL, nats: P", "response NLL, nats: TTP"),
    ]
    # The second minus the first: 50 less on the own task, one of three.
    exact = ["-50.0 [-50.0, -50.0]", "-16.7 [-16.7, -16.7]"]
    assert table.rows() == [("fedit, instance", *exact, *["0.25 [0.25, 0.25]"] * 2)]
    assert table.caption.startswith("Minus feddpa_f, instance")


def test_fields_that_differ(make_run):
    runs = read_runs([make_run("a"), make_run("b", method="fedit")])
    table = result_tables.difference_table(runs)
    assert table.headings() == ["field", "feddpa_f", "fedit"]
    assert table.rows() == [("fed.method", "feddpa_f", "fedit")]
    whole = result_tables.fields_table("a", "A", runs[0].config).rows()
    assert ("lora.targets", "q_proj, v_proj") in whole and ("seed", "0") in whole


NONE = Interval(math.nan, math.nan, math.nan)
TABLE = Table(
    "t",
    "50 % of a_b",
    [
        Column("na|me", ["=1+1", "a, b", "x & y"]),
        Column(
            "P",
            [Interval(1.5, 1.25, 2.0), None, Interval(*[float("nan")] * 3)],
            lambda v: v.text(1),
        ),
        Column("n", [1, 2, None]),
    ],
)


def test_csv():
    rows = list(csv.reader(io.StringIO(TABLE.to_csv())))
    assert rows == [
        ["na|me", "P", "P, low", "P, high", "n"],
        ["'=1+1", "1.5", "1.25", "2.0", "1.0"],
        ["a, b", "", "", "", "2.0"],
        ["x & y", "", "", "", ""],
    ]


def test_markdown():
    assert TABLE.to_markdown().splitlines() == [
        "| na&#124;me | P | n |",
        "| --- | ---: | ---: |",
        "| =1+1 | 1.5 [1.2, 2.0] | 1 |",
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
        r"=1+1 & 1.5 [1.2, 2.0] & 1 \\",
        r"a, b &  & 2 \\",
        r"x \& y & – &  \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
