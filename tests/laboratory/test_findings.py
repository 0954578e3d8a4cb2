"""What the laboratory reports, from scores by hand: no two numbers of it are the same."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from feddpa_jax.cli.console import Reporter
from feddpa_jax.cli.findings_table import render
from feddpa_jax.evaluate.estimating import summarize
from feddpa_jax.evaluate.evaluation import Asked
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.laboratory.agreement import describe_agreement, note_on_the_most_common_answer
from feddpa_jax.laboratory.candidates import Candidate, bounds
from feddpa_jax.laboratory.collect import WEIGHTS, Collected
from feddpa_jax.laboratory.findings import (
    Finding,
    Split,
    describe,
    flags,
    interpolated,
    interpolation_error,
    judge,
    notes_on_rouge,
    summary_of,
    to_csv,
    told,
)
from feddpa_jax.laboratory.grid import CURVE_METRICS, make_curves
from feddpa_jax.laboratory.questions import Questions
from feddpa_jax.laboratory.separation import Separation
from feddpa_jax.laboratory.standing import rivals, standing_of
from feddpa_jax.types import Client, Example
from feddpa_jax.weighting.settings import WeightingSettings

# Two held-out instances, of tasks b and a, and four test instances, of tasks a, a, b, c; client 0
# trains on a, client 1 on b and c.
VALIDATION, TEST = slice(0, 2), slice(2, 6)
NAMES = ("a", "b", "c")
OWN_CK = np.array([[True, False, False], [False, True, True]])
TASKS = Tasks(NAMES, np.array([0, 0, 1, 2]), OWN_CK)
HELD = Tasks(NAMES[:2], np.array([1, 0]), OWN_CK[:, :2])
# At local weight w an answer's NLL is start + slope * w, plus the square of 8 w / 10.
START_CJ = np.array([[9.0, 8, 1, 3, 5, 7], [9.5, 8.5, 2, 4, 6, 10]])
SLOPE_CJ = np.array([[4.0, -8, -1, -2, 4, 3], [-8, 4, 2, 1, -3, -4]])
W = np.array(WEIGHTS)
NLL_CJW = START_CJ[..., None] + SLOPE_CJ[..., None] * W + (0.8 * W) ** 2
# Exactly right below half for client 0's last two test instances, above it for client 1's first.
GREEDY_CJW = np.zeros((2, 6, 9), bool)
GREEDY_CJW[0, 4:, :4] = True
GREEDY_CJW[1, 2, 5:] = True


@pytest.fixture(scope="module")
def collected() -> Collected:
    questions = Questions([1, 2], [(), ()], [], [], (1,))
    empty = np.zeros((2, 6, 2))
    return Collected(questions, NLL_CJW, GREEDY_CJW, empty, {})


@pytest.fixture(scope="module")
def test_split() -> Split:
    return Split(TEST, TASKS)


def at(nll: float, w: float) -> float:
    return nll + (0.8 * w) ** 2


def test_scores_between_weights_by_hand(collected, test_split):
    weight_CJ = np.array([[9, 9, 0.0, 0.125, 0.1875, 1], [9, 9, 0.5, 0.6, 0.25, 0.9375]])
    found = interpolated(collected, test_split, weight_CJ)
    # On the lines between 1/8 and 2/8, 4/8 and 5/8, 7/8 and 1.
    square = [(0.8 * w) ** 2 for w in W]
    assert found["nll"] == pytest.approx(
        np.array(
            [
                [1.0, 2.75 + square[1], 5.75 + (square[1] + square[2]) / 2, 10 + square[8]],
                [
                    3 + square[4],
                    4.6 + square[4] + 0.8 * (square[5] - square[4]),
                    5.25 + square[2],
                    6.25 + (square[7] + square[8]) / 2,
                ],
            ]
        ),
        rel=1e-5,
    )
    # 100 up to 3/8 and 0 from 4/8; 0 up to 4/8 and 100 from 5/8.
    exact = found["exact_match"]
    assert exact == pytest.approx(np.array([[0.0, 0, 100, 0], [0, 0, 0, 0]]))
    weight_CJ[:, 2:] = [[0, 0, 0.4375, 0.375], [0.53125, 0, 0, 0]]
    exact = interpolated(collected, test_split, weight_CJ)["exact_match"]
    assert exact == pytest.approx(np.array([[0.0, 0, 50, 100], [25, 0, 0, 0]]))


def test_p_and_ttp_of_weights(collected, test_split):
    zero_CJ = np.zeros((2, 6))
    found = judge(collected, test_split, zero_CJ)["nll"]
    # P: client 0's a (1 + 3) / 2 = 2, client 1's (6 + 10) / 2 = 8: 5.
    # TTP: (2 + 5 + 7 + 3 + 6 + 10) / 6 = 5.5.
    assert (found.p.value, found.ttp.value) == pytest.approx((5.0, 5.5))
    # Of the held-out instances, both of them other tasks: b and a.
    held = Split(VALIDATION, HELD)
    found = judge(collected, held, zero_CJ)["nll"]
    # P: client 0's a 8, client 1's b 9.5; TTP: (9 + 8 + 9.5 + 8.5) / 4.
    assert (found.p.value, found.ttp.value) == pytest.approx((8.75, 8.75))
    found = judge(collected, held, np.ones((2, 6)))["nll"]
    # P: 8 - 8 and 9.5 - 8; TTP: (13 + 0 + 1.5 + 12.5) / 4; each with 0.64 more.
    assert (found.p.value, found.ttp.value) == pytest.approx((0.75 + 0.64, 6.75 + 0.64))


def test_differences_are_one_minus_the_other_and_paired(collected, test_split):
    one_CJ, other_CJ = np.ones((2, 6)), np.zeros((2, 6))
    found = judge(collected, test_split, one_CJ, other_CJ)["nll"]
    # Slopes and 0.64: client 0's a (-1 - 2) / 2, client 1's b and c (-3 - 4) / 2: P -2.5.
    # TTP: (-1.5 + 4 + 3 + 1.5 - 3 - 4) / 6 = 0.
    assert (found.p.value, found.ttp.value) == pytest.approx((-2.5 + 0.64, 0.64), abs=1e-5)
    scores, others = (interpolated(collected, test_split, w) for w in (one_CJ, other_CJ))
    expected = summarize(scores["nll"] - others["nll"], TASKS, paired=True)
    assert found.ttp == expected.ttp and found.p == expected.p
    assert "1 test instance of task b" in found.ttp.over_instances.why
    back = judge(collected, test_split, other_CJ, one_CJ)["nll"]
    assert back.p.value == pytest.approx(2.5 - 0.64, abs=1e-5)


def test_curves_by_hand(collected, test_split):
    content = summary_of(collected, test_split, [], about={"round": 3})
    assert content["round"] == 3 and content["mix_weights"] == list(WEIGHTS)
    assert content["weight_quantiles"] == [0.05, 0.25, 0.5, 0.75, 0.95]
    curves = content["curves"]
    # By task: own 2 (1 and 3), 6, 10; foreign 5, 7, 3 (2 and 4).
    own, foreign = ([p["value"] for p in curves["nll"][side]] for side in ("own", "foreign"))
    assert own == pytest.approx([at(6 - 8.5 / 3 * w, w) for w in WEIGHTS], rel=1e-5)
    assert foreign == pytest.approx([at(5 + 8.5 / 3 * w, w) for w in WEIGHTS], rel=1e-5)
    exact = {s: [p["value"] for p in points] for s, points in curves["exact_match"].items()}
    assert exact["own"] == [0.0] * 9
    assert exact["foreign"] == pytest.approx([200 / 3] * 4 + [0.0] + [50 / 3] * 4)
    first = curves["nll"]["own"][0]
    assert first["over_instances"]["low"] is None
    assert "1 test instance of task b" in first["over_instances"]["why"]


def finding(label: str, start: float, settings=None, exact=None, weight_CJ=None) -> Finding:
    """Validation, test, difference and exact scores with values of their own."""

    def scores(value: float) -> dict:
        both = {}
        for name, shift in (("nll", 0.0), ("exact_match", 50.0), ("rouge1", 70.0)):
            values = np.array([[0, 0.5, 1, 2], [0, 1, 2, 8]]) + value + shift
            both[name] = summarize(values, TASKS)
        return both

    weight_CJ = np.zeros((2, 6)) if weight_CJ is None else weight_CJ
    candidate = Candidate(label, settings, weight_CJ, None if settings else {"nll": weight_CJ})
    curved = {n: {k: v for k, v in scores(start + n).items() if k != "rouge1"} for n in (1, 2, 3)}
    return Finding(candidate, curved[1], curved[2], curved[3], scores(start + 4) if exact else None)


def test_findings_as_json(collected, test_split):
    # Own test weights: client 0's 0.1, 0.2 and client 1's 0.3, 0.4; the first two are validation's.
    weight_CJ = np.array([[0.9, 0.9, 0.1, 0.2, 0.6, 0.7], [0.9, 0.9, 0.8, 1.0, 0.3, 0.4]])
    paper = WeightingSettings("cosine", scale=0.75, support=4, seed=3)
    findings = [
        finding("paper", 10, paper, exact=True, weight_CJ=weight_CJ),
        finding("bound: x", 20),
    ]
    content = summary_of(collected, test_split, findings, about={})
    json.dumps(content)
    first, second = content["rules"]
    assert (first["name"], first["label"], first["bound"]) == ("cosine", "paper", False)
    assert (second["name"], second["label"], second["bound"]) == ("bound: x", "bound: x", True)
    assert first["setting"] == told(paper) and second["setting"] is None
    assert first["words"] == "0.75 to local, support 4, local, last, last layer"
    assert second["words"] == ""
    # P: client 0's a 0.25, client 1's (2 + 8) / 2: 2.625. TTP: (0.25 + 1 + 2 + 0.5 + 2 + 8) / 6.
    for part, start in (("validation", 11), ("test", 12), ("minus_paper", 13), ("exact", 14)):
        found = first[part]
        assert found["nll"]["P"]["value"] == pytest.approx(start + 2.625)
        assert found["nll"]["TTP"]["value"] == pytest.approx(start + 13.75 / 6)
        assert found["exact_match"]["P"]["value"] == pytest.approx(start + 52.625)
    assert first["exact"].keys() == {"nll", "exact_match", "rouge1"}
    assert second["exact"] is None
    assert second["test"]["nll"]["P"]["value"] == pytest.approx(22 + 2.625)
    assert first["weights"]["own"] == pytest.approx([0.115, 0.175, 0.25, 0.325, 0.385])
    assert first["weights"]["foreign"] == pytest.approx([0.615, 0.675, 0.75, 0.85, 0.97])


def test_all_settings_as_csv():
    settings = [
        WeightingSettings("cosine", 0.5, 5, "local", "mixed", "mean", 2, seed=7),
        WeightingSettings(
            *("=1+1,x.py:f", 1.5, 9, "global", "base", "last", None),
            seed=8,
            parameters={"ridge": 0.5},
        ),
    ]
    score_NXZ = np.array([[[1.25, 2.5], [30, 40]], [[3.75, 4.5], [60, 70]]])
    text = to_csv(settings, score_NXZ)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert rows[0] == {
        **{"rule": "cosine", "scale": "0.5", "scales": "local", "support": "5"},
        **{"embed_with": "mixed", "pooling": "mean", "layer": "2", "seed": "7"},
        "parameters": "{}",
        **{"nll P": "1.250000", "nll TTP": "2.500000"},
        **{"exact_match P": "30.000000", "exact_match TTP": "40.000000"},
    }
    assert rows[1]["parameters"] == '{"ridge": 0.5}'
    assert rows[1]["rule"] == "'=1+1,x.py:f" and rows[1]["layer"] == ""
    assert (rows[1]["nll P"], rows[1]["exact_match TTP"]) == ("3.750000", "70.000000")


def test_settings_in_words_and_as_flags():
    one = WeightingSettings("cosine", 0.5, 9, "global", "base", "mean", 3)
    assert describe(one) == "0.5 to global, support 9, base, mean, layer 3"
    assert describe(dataclasses.replace(one, rule="constant")) == "0.5 to global"
    assert flags(one) == (
        "--weighting.rule cosine --weighting.scale 0.5 --weighting.support 9 "
        "--weighting.scales global --weighting.embed_with base --weighting.pooling mean "
        "--weighting.layer 3 --weighting.parameters '{}'"
    )
    gate = dataclasses.replace(one, rule="gate", parameters={"ridge": 0.1})
    assert describe(gate).endswith("layer 3, ridge 0.1")
    assert flags(gate).endswith("""--weighting.parameters '{"ridge": 0.1}'""")
    last = dataclasses.replace(one, rule="a b.py:f", layer=None)
    assert "--weighting.rule 'a b.py:f'" in flags(last) and "--weighting.layer null" in flags(last)


def test_findings_on_the_screen():
    # TTP apart from P: client 1's own tasks count more.
    paper = WeightingSettings("cosine", support=4)
    shown = finding("paper", 10, paper, exact=True)
    values = np.array([[0, 0.5, 1, 2], [0, 1, 2, 8]])
    summary = summarize(values + 10, TASKS)
    # P: (0.25 + 5) / 2 = 2.625; TTP: (0.25 + 1 + 2 + 0.5 + 2 + 8) / 6 = 2.292.
    shown = dataclasses.replace(shown, test=shown.test | {"nll": summary})
    against = summarize(values - 30, TASKS)
    shown = dataclasses.replace(shown, minus_paper=shown.minus_paper | {"nll": against})
    shown = dataclasses.replace(shown, separation=Separation(0.47, 0.421, None))
    file = io.StringIO()
    Reporter(Console(file=file)).show(render([shown], ["a [note]"]))
    lines = file.getvalue().splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]
    assert rows[0][1:] == ["12.625", "12.292", "64.6", "64.3", "-27.708 [–] (–)", ""]
    assert rows[1][5] == "65.3 [–] (–)"
    exact = next(row for row in rows if row[0] == "run exactly")
    assert exact[1:] == ["16.625", "16.292", "66.6", "66.3", "ROUGE-1 P 86.6, TTP 86.3", ""]
    assert rows[-1] == ["paper: cosine", "0.47", "0.42", "–"]
    assert "a [note]" in file.getvalue()
    said = " ".join(row[0] for row in rows)
    assert "paper: cosine (0.5 to local, support 4, local, last, last layer)" in said


def apart(label: str, gain: float, settings: WeightingSettings | None) -> Finding:
    """A finding whose answers are better than the paper's rule's by about so much."""
    rng = np.random.default_rng(len(label))
    tasks = Tasks(("a", "b"), np.repeat([0, 1], 12), np.eye(2, dtype=bool)[[0, 1, 0, 1]])
    minus = {
        n: summarize(rng.normal(-gain, 0.3, (4, 24)), tasks, paired=True) for n in CURVE_METRICS
    }
    candidate = Candidate(label, settings, np.zeros((4, 24)), {} if settings is None else None)
    return Finding(candidate, minus, minus, minus)


def test_many_rules_are_set_against_one():
    """Bounds are no rules and the paper's is not set against itself; what stands is shown."""
    setting = WeightingSettings("cosine")
    found = [
        apart("paper", 0.0, setting),
        apart("best near", 1.0, setting),
        apart("best cosine", 0.0, setting),
        apart("bound: x", 5.0, None),
    ]
    assert [one.candidate.label for one in rivals(found)] == ["best near", "best cosine"]
    none = {"P": "–", "TTP": "–"}
    assert standing_of(found, "nll") == {
        "best near": dict.fromkeys(("P", "TTP"), "instances, clients"),
        "best cosine": none,
    }
    notes = " ".join(describe_agreement(found, {}))
    assert "In each metric, “stands over”: what a difference stands over after Holm" in notes
    assert "for 4 differences (P and TTP of every row), at 95 %." in notes
    file = io.StringIO()
    Reporter(Console(file=file, width=150)).show(render(found, []))
    rows = [line.split("│")[1:-1] for line in file.getvalue().splitlines() if "│" in line]
    over = {row[0].split(":")[0].strip(): row[-1].strip() for row in rows if row[0].strip()}
    assert (
        over["best near"] == "instances, clients"
        and over["best cosine (0.5 to local, support 5, local, last, last layer)"] == "–"
    )
    assert over["bound"] == ""


def test_targets_without_words_are_told_where_rouge_is_shown():
    exactly, curved = finding("a", 1, exact=True), finding("b", 1)
    assert notes_on_rouge([curved, exactly], ["...", "yes", "。"]) == [
        "2 test targets have no word, only punctuation: ROUGE-1 is 0 for them whatever the answer."
    ]
    assert notes_on_rouge([curved], ["..."]) == []
    assert notes_on_rouge([exactly], ["yes", "はい"]) == []


def test_interpolation_errors_by_hand(collected, test_split):
    """Every second weight is left out: the line is off by the square's (0.8 / 8)^2, 0.01."""
    error = interpolation_error(collected, test_split)
    assert error["nll"] == {
        "P": pytest.approx(0.01, rel=1e-3),
        "TTP": pytest.approx(0.01, rel=1e-3),
    }
    # Exact matches come and go beside a left-out weight: at 3/8 (100, between 100 and 0: off by
    # 50) in client 0's foreign b and c; at 5/8 (100, between 0 and 100) in client 1's a, half of
    # its task.
    assert error["exact_match"] == {"P": 0.0, "TTP": pytest.approx((50 + 50 + 25) / 6)}


def test_how_well_exact_runs_agree():
    one = finding("paper", 10, WeightingSettings(), exact=True)  # exact is 2 more than test
    *_, told = describe_agreement([one], {"nll": {"P": 0.125, "TTP": 0.25}})
    assert "response NLL 0.1250 and 0.2500 (seen, where run exactly: 2.0000 and 2.0000)" in told


def test_shares_of_p_and_ttp(collected):
    share_CIZ = make_curves(collected, TASKS, TEST).share_CIZ
    # Client 0's P is half of a's two; client 1's half of b and c, half each.
    expected = [[0.25, 0.25, 0, 0], [0, 0, 0.25, 0.25]]
    np.testing.assert_allclose(share_CIZ[..., 0], expected)
    np.testing.assert_allclose(share_CIZ[..., 1], [[1 / 12, 1 / 12, 1 / 6, 1 / 6]] * 2)


def test_bounds_by_hand(collected):
    """The best weights for the answers that they are scored on."""
    rows, tasks = {"validation": VALIDATION, "test": TEST}, {"validation": HELD, "test": TASKS}
    task, answer = bounds(collected, tasks, rows)
    # By answer: the least of start + slope w + 0.64 w^2 at w = -slope / 1.28, within 0 and 1.
    np.testing.assert_array_equal(answer.weight_CJ[:, TEST], [[0.75, 1, 0, 0], [0, 0, 1, 1]])
    assert task.is_bound and answer.is_bound
    # By task: the least of the sum over the task's instances, client by client.
    for c in range(2):
        for k in range(len(TASKS.names)):
            own = np.flatnonzero(TASKS.task_I == k) + TEST.start
            (weight,) = set(task.weight_CJ[c, own].tolist())
            cost_W = collected.nll_CJW[c, own].sum(axis=0)
            assert WEIGHTS[int(cost_W.argmin())] == weight


def test_bounds_see_the_test(collected):
    """With the test's slopes reversed, so are the bounds' weights there."""
    slopes_CJ = SLOPE_CJ.copy()
    slopes_CJ[:, TEST] *= -1
    nll_CJW = START_CJ[..., None] + slopes_CJ[..., None] * W
    changed = dataclasses.replace(collected, nll_CJW=nll_CJW)
    rows, tasks = {"validation": VALIDATION, "test": TEST}, {"validation": HELD, "test": TASKS}
    task, _ = bounds(changed, tasks, rows)
    np.testing.assert_array_equal(task.weight_CJ[:, TEST], ~OWN_CK[:, TASKS.task_I] * 1.0)


def test_no_weights_beat_a_bound(collected):
    """Random ones, one per client and task, and one per answer; by each metric."""
    draw = np.random.default_rng(0)
    rows, tasks = {"validation": VALIDATION, "test": TEST}, {"validation": HELD, "test": TASKS}
    greedy_CJW = draw.random(collected.nll_CJW.shape) < 0.5
    changed = dataclasses.replace(collected, greedy_CJW=greedy_CJW)
    split = Split(TEST, TASKS)
    bound_of: dict[str, Candidate] = {}
    bound_of["task"], bound_of["answer"] = bounds(changed, tasks, rows)
    for _ in range(200):
        free_CJ = draw.random(greedy_CJW.shape[:2])
        by_task_CJ = free_CJ.copy()
        by_task_CJ[:, TEST] = draw.random((2, len(TASKS.names)))[:, TASKS.task_I]
        for kind, weight_CJ in (("task", by_task_CJ), ("answer", free_CJ)):
            of_bound = bound_of[kind].by_metric
            assert of_bound is not None
            for metric, best_CJ in of_bound.items():
                sign = 1 if metric == "nll" else -1
                best = judge(changed, split, best_CJ)[metric]
                found = judge(changed, split, weight_CJ)[metric]
                assert sign * best.p.value <= sign * found.p.value + 1e-5
                assert sign * best.ttp.value <= sign * found.ttp.value + 1e-5


def test_what_the_most_common_answer_scores_is_told():
    """anna's task has the answer that is right for one of two; ben's is right for none."""
    clients = (
        Client("anna", (Example("x", "yes", task="a"), Example("x", "yes", task="a"))),
        Client("ben", (Example("x", "no", task="b"),)),
    )
    instances = (
        *(Example("?", answer, task="a") for answer in ("yes", "no")),
        Example("?", "maybe", task="b"),
    )
    setting = Asked(clients, instances)
    note = note_on_the_most_common_answer(setting)
    assert note.endswith("in exact match %, P 25.0 and TTP 25.0.")
