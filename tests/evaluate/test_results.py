"""What an evaluation reports, from scores by hand: no two numbers of it are the same."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from feddpa_jax.cli.console import Reporter
from feddpa_jax.cli.scores_table import render
from feddpa_jax.evaluate.estimating import summarize
from feddpa_jax.evaluate.evaluation import Asked, ModeResult
from feddpa_jax.evaluate.modes import ModeWeights, fixed_weights
from feddpa_jax.evaluate.results import make_evaluation, write_evaluation
from feddpa_jax.types import Client, Example

# anna trains on a, ben on b and c; the instances are of c, a, a, b.
CLIENTS = (
    Client("anna", (Example("x", "y", task="a"),)),
    Client("ben", (Example("x", "y", task="c"), Example("x", "y", task="b"))),
)
INSTANCES = (
    Example("one", "1", task="c"),
    Example("two", "2\u2028", "in", task="a"),
    Example("two", "2\u2028", "other", task="a"),
    Example("one", "4", task="b"),
)
SETTING = Asked(CLIENTS, INSTANCES)
NLL = {
    # P of global: anna's a (2 + 6) / 2 = 4, ben's (3 + 4) / 2 = 3.5: 3.75.
    # TTP: anna (4 + 9 + 1) / 3, ben (8 + 4 + 3) / 3: 29 / 6.
    "global": np.array([[1.0, 2, 6, 9], [3, 7, 9, 4]]),
    # P: anna 1, ben (8 + 10) / 2 = 9: 5; TTP: (1 + 5 + 12 + 22 + 10 + 8) / 6 = 58 / 6.
    "local": np.array([[12.0, 0.5, 1.5, 5], [8, 20, 24, 10]]),
    # P: anna 2, ben (1 + 2) / 2 = 1.5: 1.75; TTP: (2 + 7 + 3 + 6 + 2 + 1) / 6 = 3.5.
    "instance": np.array([[3.0, 1, 3, 7], [1, 5, 7, 2]]),
}
LOCAL = np.array([[0.1, 0.8, 0.6, 0.2], [0.9, 0.3, 0.4, 0.5]])
SIMILARITY = np.array([[0.11, 0.12, 0.13, 0.14], [0.21, 0.22, 0.23, 0.24]])
WEIGHTS = {
    "global": fixed_weights("global", 2, 4, fixed=0.5),
    "local": fixed_weights("local", 2, 4, fixed=0.5),
    "instance": ModeWeights(0.95 - LOCAL, LOCAL, SIMILARITY),
}
WORDS = {m: [[f"{m} {c} {i}" for i in range(4)] for c in range(2)] for m in NLL}
RESULTS = {
    mode: ModeResult(WEIGHTS[mode], {"nll": NLL[mode], "exact_match": 100 - NLL[mode]}, WORDS[mode])
    for mode in NLL
}
SETTINGS = {"answers_with": "instance", "round": 7, "weighting": {"scales": "global"}}


@pytest.fixture(scope="module")
def report():
    return make_evaluation(RESULTS, SETTING, settings=SETTINGS)


@pytest.fixture(scope="module")
def folder(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    write_evaluation(folder, report)
    return folder


def test_summary_by_hand(folder):
    found = json.loads((folder / "summary.json").read_text())
    assert (found["answers_with"], found["round"]) == ("instance", 7)
    assert found["tasks"] == ["a", "b", "c"]
    assert found["own_tasks"] == {"anna": ["a"], "ben": ["b", "c"]}
    values = {
        mode: [by_metric["nll"][measure]["value"] for measure in ("P", "TTP")]
        for mode, by_metric in found["modes"].items()
    }
    assert values == {
        "global": pytest.approx([3.75, 29 / 6]),
        "local": pytest.approx([5.0, 58 / 6]),
        "instance": pytest.approx([1.75, 3.5]),
    }
    exact = found["modes"]["local"]["exact_match"]
    assert (exact["P"]["value"], exact["TTP"]["value"]) == pytest.approx((95.0, 100 - 58 / 6))
    assert found["modes"]["global"]["nll"]["matrix"] == {
        "anna": {"a": 4.0, "b": 9.0, "c": 1.0},
        "ben": {"a": 8.0, "b": 4.0, "c": 3.0},
    }
    differences = {
        pair: [by_metric["nll"][measure]["value"] for measure in ("P", "TTP")]
        for pair, by_metric in found["differences"].items()
    }
    assert differences == {
        "instance - global": pytest.approx([1.75 - 3.75, 3.5 - 29 / 6]),
        "instance - local": pytest.approx([1.75 - 5.0, 3.5 - 58 / 6]),
    }
    matrix = found["differences"]["instance - global"]["nll"]["matrix"]
    assert matrix["ben"] == {"a": -2.0, "b": -2.0, "c": -2.0}
    # anna's own 0.8 and 0.6, ben's 0.9 and 0.5; the others 0.1, 0.2, 0.3, 0.4.
    assert found["mean_local_weight"] == {
        "own": pytest.approx(0.7),
        "foreign": pytest.approx(0.25),
    }


FEW = {
    "over_instances": "1 test instance of task b, 4 of each task are needed",
    "over_clients": "2 clients count, 4 are needed",
    "over_all": "1 test instance of task b, 4 of each task are needed",
}


def test_intervals_of_too_few_are_null_and_say_why(folder):
    found = json.loads((folder / "summary.json").read_text())
    for summaries in (found["modes"]["global"], found["differences"]["instance - local"]):
        for kind, why in FEW.items():
            told = {"low": None, "high": None, "freedom": None, "why": why}
            assert summaries["nll"]["P"][kind] == summaries["exact_match"]["TTP"][kind] == told


def test_intervals_are_those_of_summarize(tmp_path):
    """Of four clients and six instances of each of four tasks; differences are paired."""
    rng = np.random.default_rng(0)
    tasks = [name for name in "abcd" for _ in range(6)]
    setting = Asked(
        tuple(Client(f"client {name}", (Example("x", "y", task=name),)) for name in "abcd"),
        tuple(Example(str(i), "y", task=name) for i, name in enumerate(tasks)),
    )
    scores = {mode: rng.gamma(2, 30, (4, 24)).clip(0, 100) for mode in ("global", "local")}
    scores["instance"] = scores["global"]
    weights = ModeWeights(np.full((4, 24), 0.5), np.full((4, 24), 0.5), None)
    results = {
        mode: ModeResult(weights, {"nll": own_CI, "exact_match": own_CI}, None)
        for mode, own_CI in scores.items()
    }
    made = make_evaluation(results, setting, settings={})
    write_evaluation(tmp_path, made)
    found = json.loads((tmp_path / "summary.json").read_text())
    minus_CI = scores["instance"] - scores["local"]
    for metric, span in (("nll", None), ("exact_match", 100.0)):
        one = summarize(scores["local"], setting.tasks(), span=span)
        minus = summarize(minus_CI, setting.tasks(), span=span, paired=True)
        assert found["modes"]["local"][metric]["P"] == one.p.to_json()
        assert found["differences"]["instance - local"][metric]["TTP"] == minus.ttp.to_json()
        ends = made.to_pandas().set_index(["metric", "mode"]).loc[(metric, "local")]
        assert ends["TTP_over_clients_low"] == one.ttp.over_clients.low
        assert ends["P_over_all_high"] == one.p.over_all.high
    # A score that cannot be told from another's: by the rule of three, within 3 / 24.
    same = found["differences"]["instance - global"]["exact_match"]["TTP"]
    assert same["over_instances"]["high"] == pytest.approx(12.5)
    assert same["over_clients"]["why"] == "all clients have the same value"


def test_lines_by_hand(folder):
    lines = [json.loads(line) for line in (folder / "instances.jsonl").read_text().split("\n")[:-1]]
    places = [(line["mode"], line["client"], line["index"]) for line in lines]
    assert places == [(m, c, i) for m in NLL for c in ("anna", "ben") for i in range(4)]
    for line in lines:
        c, i = ("anna", "ben").index(line["client"]), line["index"]
        assert line["task"] == INSTANCES[i].task
        assert line["target"] == INSTANCES[i].output
        assert line["prediction"] == f"{line['mode']} {c} {i}"
        nll = NLL[line["mode"]][c, i]
        assert line["scores"] == {"nll": nll, "exact_match": 100 - nll}
        if line["mode"] == "instance":
            assert line["similarity"] == pytest.approx(SIMILARITY[c, i])
            assert line["local_weight"] == pytest.approx(LOCAL[c, i])
            assert line["global_weight"] == pytest.approx(0.95 - LOCAL[c, i])
        else:
            is_local = line["mode"] == "local"
            assert (line["global_weight"], line["local_weight"]) == (1 - is_local, is_local)
            assert line["similarity"] is None
        assert "local_weight_by_layer" not in line
    # A digest is that of instruction, input and output alike.
    digests = [line["instance"] for line in lines[:4]]
    assert len(set(digests)) == 4 and all(len(digest) == 16 for digest in digests)
    assert [line["instance"] for line in lines] == digests * 6
    again = Example("one", "1", task="of another name")
    other = Asked(CLIENTS, (again, *INSTANCES[1:]))
    write_evaluation(folder / "again", _of(other))
    (first, *_) = (folder / "again" / "instances.jsonl").read_text().split("\n")
    assert json.loads(first)["instance"] == digests[0]


def _of(setting: Asked):
    return make_evaluation(RESULTS, setting, settings=SETTINGS)


def test_weights_by_layer(tmp_path):
    """Where layers have weights of their own, the mean stands beside them."""
    layered = np.stack([LOCAL - 0.05, LOCAL + 0.15], axis=-1)
    weights = ModeWeights(1 - layered, layered, np.stack([SIMILARITY, 3 * SIMILARITY], axis=-1))
    results = {"instance": ModeResult(weights, {"nll": NLL["instance"]}, None)}
    made = make_evaluation(results, SETTING, settings={})
    assert made.weights == {"own": pytest.approx(0.75), "foreign": pytest.approx(0.3)}
    write_evaluation(tmp_path, made)
    line = json.loads((tmp_path / "instances.jsonl").read_text().split("\n")[1])
    assert line["local_weight_by_layer"] == pytest.approx([0.75, 0.95])
    assert line["local_weight"] == pytest.approx(0.85)
    assert line["global_weight"] == pytest.approx(0.15)
    assert line["similarity"] == pytest.approx(0.24)
    assert line["prediction"] is None


def test_screen_by_hand(report):
    file = io.StringIO()
    Reporter(Console(file=file)).show(render(report))
    lines = file.getvalue().splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]
    assert rows[:3] == [
        ["global", "3.75 [–] (–)", "4.83 [–] (–)"],
        ["local", "5.00 [–] (–)", "9.67 [–] (–)"],
        ["instance *", "1.75 [–] (–)", "3.50 [–] (–)"],
    ]
    assert rows[3][:2] == ["global", "96.2 [–] (–)"]
    headings = [
        [cell.strip() for cell in line.strip("┃").split("┃")] for line in lines if "┃" in line
    ]
    assert headings == [["mode", "P: own task", "TTP: all tasks"]] * 2
    text = " ".join(file.getvalue().split())
    assert "response NLL, nats (lower is better)" in text
    assert "exact match, % (higher is better)" in text
    assert "P, instance minus global: response NLL, nats -2.00 [–] (–); exact" in text
    assert "TTP, instance minus local: response NLL, nats -6.17 [–] (–); exact" in text
    assert "mean local weight on own tasks 0.700, foreign tasks 0.250" in text
    assert "(weighting.scales: global)" in text
    assert "[ ]: 95 % interval over test instances, clients and seeds fixed. ( ):" in text
    assert "No interval over instances: 1 test instance of task b, 4 of each task are" in text
    assert "No interval over clients: 2 clients count, 4 are needed." in text


def test_no_own_task_in_the_tests(tmp_path):
    """P of nothing is null in the file and a dash on the screen."""
    clients = (Client("anna", (Example("x", "y", task="z"),)), CLIENTS[1])
    none = Asked(clients[:1], INSTANCES)
    results = {
        "global": ModeResult(
            fixed_weights("global", 1, 4, fixed=0.5), {"nll": NLL["global"][:1]}, None
        )
    }
    made = make_evaluation(results, none, settings={})
    write_evaluation(tmp_path, made)
    found = json.loads((tmp_path / "summary.json").read_text())
    p = found["modes"]["global"]["nll"]["P"]
    assert p["value"] is None and p["over_all"]["low"] is None
    assert found["modes"]["global"]["nll"]["TTP"]["value"] == pytest.approx(14 / 3)
    assert found["own_tasks"] == {"anna": []} and found["mean_local_weight"] == {}
    file = io.StringIO()
    Reporter(Console(file=file)).show(render(made))
    (row,) = [line for line in file.getvalue().splitlines() if line.startswith("│ global")]
    assert [cell.strip() for cell in row.strip("│").split("│")][1] == "–"


def test_gains_over_the_most_common_answer():
    """By hand: what an answer scores above always giving its task's most common training answer."""
    clients = (
        Client("anna", (Example("x", "2\u2028", task="a"), Example("x", "7", task="a"))),
        Client("ben", (Example("x", "1", task="c"), Example("x", "1", task="c"))),
    )
    setting = dataclasses.replace(SETTING, clients=clients)
    found = make_evaluation(RESULTS, setting, settings=SETTINGS)
    # "2" and "7" are each there once, so the first one; "1" is right for c; b was never trained on.
    assert list(found.most_common) == ["exact_match"]
    assert found.most_common["exact_match"].p.value == 100  # anna's a, ben's c
    assert found.most_common["exact_match"].ttp.value == pytest.approx(200 / 3)
    for mode, own in found.gains.items():
        scores = found["exact_match"][mode]
        assert own["exact_match"].p.value == pytest.approx(scores.p.value - 100)
        assert own["exact_match"].ttp.value == pytest.approx(scores.ttp.value - 200 / 3)
    # Instance: 100 - NLL; a is anna's alone, b nobody's.
    by_task = found.by_task("exact_match", "instance")
    assert by_task["a"] == (98, 96, 100)
    assert by_task["b"] == (None, 95.5, 0)
    assert by_task["c"] == (99, 98, 100)
    assert found.by_task("nll", "instance")["a"] == (2, 4, None)
    told = found.summary()
    assert told["most_common_answer"]["exact_match"]["TTP"]["value"] == pytest.approx(200 / 3)
    assert told["gains"]["instance"]["exact_match"]["matrix"]["anna"]["a"] == -2
    with io.StringIO() as screen:
        Console(file=screen, width=200).print(render(found))
        shown = screen.getvalue()
    assert "most common answer" in shown
    assert "instance minus the task's most common training answer: P -1.5" in shown
    assert "own tasks: a -2.0, c -1.0" in shown
