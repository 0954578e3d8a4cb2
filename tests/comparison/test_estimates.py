"""P and TTP over seeds, by hand and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from feddpa_jax.comparison.estimates import estimate_seeds, t_interval
from feddpa_jax.comparison.finished import Scores
from feddpa_jax.evaluate.estimating import summarize
from feddpa_jax.evaluate.interval import KINDS
from feddpa_jax.evaluate.personalization import Tasks

# Twelve instances of each task; half of the clients train on each.
TASKS = Tasks(("a", "b"), np.repeat([0, 1], 12), np.eye(2, dtype=bool)[[0, 1, 0, 1]])


def asked(name: str, tasks: Tasks = TASKS) -> Scores:
    """Four clients on 24 instances."""
    names = tuple(f"{name}{i}" for i in range(len(tasks.task_I)))
    return Scores(tuple("abcd"), names, tasks, "global", {})


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(5, 2, (4, 24)).clip(0, 9)


def test_students_interval_by_hand():
    # Mean 2, sd 1, t(0.975, 2) = 4.3027; 4.3027 / sqrt(3) = 2.4841.
    found = t_interval([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.value, round(found.low, 4), round(found.high, 4)) == (2.0, -0.4841, 4.4841)
    values = [0.3, 0.1, 0.7, 0.2]
    theirs = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    ours = t_interval(values)
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx(theirs)
    assert t_interval([1.0]) is None
    assert t_interval([1.0, 3.0]) is not None


def test_one_seed_is_the_evaluation_itself():
    scores, one = draw(0), asked("x")
    found = estimate_seeds([scores], [one], span=9.0)
    theirs = summarize(scores, TASKS, span=9.0)
    for measure, estimate in (("P", theirs.p), ("TTP", theirs.ttp)):
        for kind in KINDS:
            assert getattr(found[measure], kind) == getattr(estimate, kind)
            assert getattr(estimate, kind).bounded
    assert found["P"].over_seeds is None and found["P"].half() is None
    assert found["P"].by_seed == (theirs.p.value,)


def test_intervals_of_seeds_on_the_same_instances_are_those_of_their_mean():
    scores, one = [draw(1), draw(2)], asked("x")
    found = estimate_seeds(scores, [one] * 2)
    theirs = summarize(np.mean(scores, axis=0), TASKS)
    for measure, estimate in (("P", theirs.p), ("TTP", theirs.ttp)):
        for kind in KINDS:
            ours, span = getattr(found[measure], kind), getattr(estimate, kind)
            assert (ours.low, ours.high) == pytest.approx((span.low, span.high))
        assert found[measure].over_seeds == t_interval(found[measure].by_seed)
        assert found[measure].by_seed == pytest.approx(
            [getattr(summarize(own, TASKS), measure.lower()).value for own in scores]
        )


def test_errors_of_seeds_on_other_instances_average_out():
    """Errors of two independent test sets: each alone would be wider by sqrt(2)."""
    sizes = (400, 300)
    scores = [np.random.default_rng(seed).normal(size=(1, n)) for seed, n in enumerate(sizes)]
    own = [
        Scores(
            ("anna",),
            tuple(f"{name}{i}" for i in range(n)),
            Tasks(("a",), np.zeros(n, int), np.array([[True]])),
            "global",
            {},
        )
        for name, n in zip("xy", sizes, strict=True)
    ]
    apart = estimate_seeds(scores, own)["TTP"].over_instances
    alone = [
        estimate_seeds([s], [o])["TTP"].over_instances for s, o in zip(scores, own, strict=True)
    ]
    width = math.sqrt(sum((one.high - one.low) ** 2 for one in alone)) / 2
    assert apart.high - apart.low == pytest.approx(width, rel=0.01)
    assert apart.value == pytest.approx(np.mean([one.value for one in alone]))


def test_differences_are_paired():
    """A difference of 1 everywhere is 1 with certainty, but for the rule of three."""
    scores, one = draw(5), asked("x")
    low, high = (estimate_seeds([s], [one])["P"].over_instances for s in (scores, scores + 1))
    assert (high.low, high.high) == pytest.approx((low.low + 1, low.high + 1))
    minus = estimate_seeds([np.ones_like(scores)], [one], span=10.0, paired=True)["P"]
    span = minus.over_instances
    assert (minus.value, span.low, span.high) == pytest.approx((1, 1 - 30 / 24, 1 + 30 / 24))
    assert not minus.over_clients.bounded


def test_text_has_half_of_the_interval_over_seeds_behind_it():
    found = estimate_seeds([draw(0), draw(1)], [asked("x")] * 2)["TTP"]
    half = found.half()
    assert half is not None and found.text(2).endswith(f") ± {half:.2f}")
    assert estimate_seeds([draw(0)], [asked("x")])["TTP"].text(2).endswith(")")


def test_no_own_task_in_the_tests_is_no_p():
    tasks = Tasks(("a", "b"), TASKS.task_I, np.zeros((4, 2), bool))
    found = estimate_seeds([draw(0), draw(1)], [asked("x", tasks)] * 2)
    assert found["P"].text(2) == "–" and found["P"].half() is None
    assert found["TTP"].over_instances.known
