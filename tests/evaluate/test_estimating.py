"""Estimates of P and TTP: which intervals there are, and what they are of."""

import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from feddpa_jax.evaluate import estimating
from feddpa_jax.evaluate.estimating import Sample, estimate, summarize
from feddpa_jax.evaluate.interval import KINDS, Estimate, missing_notes
from feddpa_jax.evaluate.personalization import Tasks, shares
from feddpa_jax.evaluate.spread import Spread

RUN = Path(__file__).resolve().parents[3] / "shared/runs/dataset1_feddpa_f/eval"


def world(each=6, clients=5, tasks=4, seed=0, seeds=1):
    """Scores of some seeds, and tasks in mixed order; the last client has no task of its own."""
    rng = np.random.default_rng(seed)
    task_I = rng.permutation(np.repeat(np.arange(tasks), each))
    own_CK = np.zeros((clients, tasks), bool)
    own_CK[np.arange(clients - 1), np.arange(clients - 1) % tasks] = True
    own_CK[0, -1] = True
    names = tuple(f"task {k}" for k in range(tasks))
    size = (seeds, clients, tasks * each)
    scores_SCI = rng.normal(5, 2, size) + rng.normal(0, 1, size[1:]) + rng.normal(0, 1, size[2])
    return list(scores_SCI), Tasks(names, task_I, own_CK)


def same(one: Estimate, other: Estimate) -> bool:
    ends = [
        [getattr(found, kind).low, getattr(found, kind).high]
        for found in (one, other)
        for kind in KINDS
    ]
    return bool(np.allclose(ends[:3], ends[3:], rtol=1e-9))


def by_brute_force(scores_CI, tasks, share_CK):
    """The three variances from their definitions, cell by cell."""
    cells, clients, members = 0.0, [], []
    for k in range(len(tasks.names)):
        own_CI = scores_CI[:, tasks.task_I == k]
        parts = [
            sum(share_CK[c, k] * own_CI[c, i] for c in range(len(own_CI)))
            for i in range(own_CI.shape[1])
        ]
        if share_CK[:, k].any():
            members.append(np.var(parts, ddof=1) / len(parts))
        cells += sum(
            share_CK[c, k] ** 2 * np.var(own_CI[c], ddof=1) / own_CI.shape[1]
            for c in range(len(own_CI))
        )
    for c in np.flatnonzero(share_CK.any(axis=1)):
        of_task = [scores_CI[c, tasks.task_I == k].mean() for k in range(len(tasks.names))]
        clients.append(np.dot(share_CK[c], of_task) / share_CK[c].sum())
    return sum(members), np.var(clients, ddof=1) / len(clients), cells


@pytest.mark.parametrize("measure", ["P", "TTP"])
def test_variances_are_those_of_the_definitions(measure, monkeypatch):
    monkeypatch.setattr(estimating, "BLOCK", 200)  # So that blocks of clients are used.
    (scores_CI,), tasks = world()
    share_CK = shares(tasks.own_CK)[measure]
    over_instances, over_clients, cells = by_brute_force(scores_CI, tasks, share_CK)
    sample = Sample([scores_CI], tasks)
    assert (share_CK**2 * sample.variances).sum() == pytest.approx(cells)
    seen = []

    def reach(self, least=0.0):
        seen.append(self.variance)
        return 1.0, 1.0

    monkeypatch.setattr(Spread, "reach", reach)
    estimate([sample], [share_CK])
    both = max(over_instances, over_clients, over_instances + over_clients - cells)
    assert seen == pytest.approx([over_instances, over_clients, both])


def test_shares_are_all_there_is():
    own_CK = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], bool)
    p_CK, ttp_CK = shares(own_CK).values()
    np.testing.assert_allclose(p_CK, [[1 / 4, 0, 1 / 4], [0, 0, 0], [0, 1 / 2, 0]])
    np.testing.assert_allclose(ttp_CK, 1 / 9)
    assert not shares(np.zeros((2, 3), bool))["P"].any()


def test_differences_are_paired():
    """A gain that is nearly the same everywhere is sure, however noisy the scores."""
    (scores_CI,), tasks = world(each=20)
    gain_CI = np.random.default_rng(1).normal(1.0, 0.05, scores_CI.shape)
    gain, alone = summarize(gain_CI, tasks, paired=True), summarize(scores_CI + gain_CI, tasks)
    for measure in ("p", "ttp"):
        one, other = (getattr(found, measure) for found in (gain, alone))
        for kind in KINDS:
            a, b = getattr(one, kind), getattr(other, kind)
            assert a.high - a.low < 0.2 * (b.high - b.low)
        assert one.over_all.low > 0.9 and one.over_all.p < 1e-3


def test_order_of_instances_and_clients_does_not_matter():
    (scores_CI,), tasks = world()
    first = summarize(scores_CI, tasks)
    rng = np.random.default_rng(2)
    order_I, order_C = rng.permutation(scores_CI.shape[1]), rng.permutation(len(scores_CI))
    moved = Tasks(tasks.names, tasks.task_I[order_I], tasks.own_CK[order_C])
    again = summarize(scores_CI[order_C][:, order_I], moved)
    assert same(first.p, again.p) and same(first.ttp, again.ttp)


@pytest.mark.parametrize(
    ("sizes", "clients", "instances", "over_clients"),
    [
        ((4, 4, 4, 4, 4), 4, "", ""),
        ((3, 9, 9, 9), 4, "3 test instances of task 0, 4 of each task are needed", ""),
        ((1, 20), 4, "1 test instance of task 0, 4 of each task are needed", ""),
        ((4, 4, 4, 7), 4, "19 test instances count, 20 are needed", ""),
        ((10, 10), 3, "", "3 clients count, 4 are needed"),
    ],
)
def test_no_interval_of_too_few(sizes, clients, instances, over_clients):
    tasks = Tasks(
        tuple(map(str, range(len(sizes)))),
        np.repeat(np.arange(len(sizes)), sizes),
        np.ones((clients, len(sizes)), bool),
    )
    scores_CI = np.random.default_rng(0).normal(size=(clients, sum(sizes)))
    found = summarize(scores_CI, tasks).ttp
    assert found.over_instances.why == instances
    assert found.over_clients.why == over_clients
    assert found.over_all.why == (instances or over_clients)
    for kind in KINDS:
        span = getattr(found, kind)
        assert span.bounded == (not span.why) and span.known and span.value == found.value
    assert len(missing_notes([found])) == bool(instances) + bool(over_clients)


def test_only_instances_that_count_are_counted():
    """P rests on own tasks alone: what foreign ones lack is of no matter to it."""
    (scores_CI,), tasks = world(each=20, clients=5, tasks=2)
    few = np.flatnonzero(tasks.task_I == 1)[:2]
    kept_I = np.sort(np.concatenate([np.flatnonzero(tasks.task_I == 0), few]))
    own_CK = np.array([[True, False]] * 5)
    found = summarize(scores_CI[:, kept_I], Tasks(tasks.names, tasks.task_I[kept_I], own_CK))
    assert found.p.over_instances.bounded and not found.ttp.over_instances.bounded


def test_where_nothing_varies_there_is_an_interval_only_of_a_known_span():
    (scores_CI,), tasks = world(each=10, tasks=4)
    zero_CI = 0 * scores_CI
    for found in (summarize(zero_CI, tasks), summarize(zero_CI + 1 / 3, tasks)):
        assert found.ttp.over_instances.why == "all test instances have the same score"
        assert found.p.over_clients.why == "all clients have the same value"
        assert np.isnan(found.p.over_all.p)
    # Forty answers agree: by the rule of three, 3 of 40 of them may not.
    none = summarize(zero_CI, tasks, span=100.0, paired=True).ttp
    assert (none.over_instances.low, none.over_instances.high) == pytest.approx((-7.5, 7.5))
    assert (none.over_all.low, none.over_all.high) == pytest.approx((-7.5, 7.5))
    assert not none.over_clients.bounded
    # An interval of scores ends where scores do.
    alone = summarize(zero_CI, tasks, span=100.0).ttp.over_instances
    assert (alone.low, alone.high) == pytest.approx((0.0, 7.5))
    full = summarize(zero_CI + 100, tasks, span=100.0).ttp.over_instances
    assert (full.low, full.high) == pytest.approx((92.5, 100.0))


def test_seeds_are_in_over_all_from_three_on():
    shift = [0.0, 3.0, 9.0]
    scores_SCI, tasks = world(seeds=3)
    moved = [own_CI + by for own_CI, by in zip(scores_SCI, shift, strict=True)]
    share_CK = shares(tasks.own_CK)["TTP"]

    def found(scores) -> Estimate:
        return estimate([Sample(scores, tasks)], [share_CK])

    three = found(moved)
    fixed = found([np.mean(moved, axis=0)])
    # The mean over seeds is what the other kinds are of.
    assert three.over_instances == fixed.over_instances
    assert three.over_clients == fixed.over_clients
    # Values of seeds are some 3 to 9 apart: t(0.975, 2) * sd(0, 3, 9) / sqrt(3) is 11.4.
    assert 9 < three.over_all.high - three.value < 13
    assert fixed.over_all.high - fixed.value < 3
    two = found(moved[:2]).over_all
    assert two == found([np.mean(moved[:2], axis=0)]).over_all


def test_seeds_of_other_instances_are_independent():
    """Two samples of instances halve the variance over instances of one."""
    (one_CI, other_CI), tasks = world(each=30, seeds=2)
    apart = [Sample([one_CI], tasks), Sample([other_CI], tasks)]
    share_CK = shares(tasks.own_CK)["TTP"]
    found = estimate(apart, [share_CK, share_CK])
    single = [estimate([sample], [share_CK]) for sample in apart]
    assert found.value == pytest.approx(np.mean([own.value for own in single]))
    widths = [own.over_instances.high - own.over_instances.low for own in (*single, found)]
    assert widths[2] == pytest.approx(np.hypot(widths[0], widths[1]) / 2, rel=0.02)
    none = np.zeros_like(tasks.own_CK)
    none[0, 0] = True
    other = estimate(apart, [share_CK, shares(none)["P"]])
    assert other.over_clients.why == "clients differ between seeds"


def test_many_clients_take_little_memory_and_time(monkeypatch):
    (scores_CI,), tasks = world(each=5, clients=120, tasks=120)
    monkeypatch.setattr(estimating, "BLOCK", 2**18)
    tracemalloc.start()
    summarize(scores_CI, tasks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Instances by tasks are 0.6 MB; three blocks of 0.25 MB, and matrices of 0.1 MB.
    assert peak < 2.5 * 2**20


def test_the_paper_at_its_length():
    """FedDPA-F's gain of exact match on P: sure over instances, not over clients."""
    if not RUN.is_dir():
        pytest.skip(f"{RUN} is not there: the runs at the paper's length are not in the repository")
    summary = json.loads((RUN / "summary.json").read_text())
    clients, names = list(summary["own_tasks"]), tuple(summary["tasks"])
    scores = {"instance": {}, "global": {}}
    task_of = {}
    with gzip.open(RUN / "instances.jsonl.gz", "rt") as lines:
        for line in map(json.loads, lines):
            if line["mode"] in scores:
                place = clients.index(line["client"]), line["index"]
                scores[line["mode"]][place] = line["scores"]["exact_match"]
                task_of[line["index"]] = names.index(line["task"])
    own_CK = np.array([[n in summary["own_tasks"][c] for n in names] for c in clients])
    tasks = Tasks(names, np.array([task_of[i] for i in range(len(task_of))]), own_CK)
    minus_CI = np.array(
        [
            [scores["instance"][c, i] - scores["global"][c, i] for i in range(len(task_of))]
            for c in range(len(clients))
        ]
    )
    found = summarize(minus_CI, tasks, span=100.0, paired=True).p
    assert found.value == pytest.approx(3.375)
    spans = [found.over_instances, found.over_clients, found.over_all]
    ends = [[span.low, span.high] for span in spans]
    np.testing.assert_allclose(ends, [[1.2, 5.5], [-1.1, 7.9], [-1.1, 7.9]], atol=0.4)
    assert found.over_instances.p < 0.01 and found.over_clients.p > 0.1
