"""P and TTP over seeds, by hand and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from feddpa_jax.comparison.estimates import Estimator, t_interval
from feddpa_jax.comparison.finished import Scores
from feddpa_jax.evaluate.personalization import Resamples, Tasks, summarize

TASKS = Tasks(("a", "b"), np.array([0, 0, 1, 1, 1]), np.array([[True, False], [False, True]]))


def asked(name: str, tasks: Tasks = TASKS) -> Scores:
    """Two clients on five instances."""
    names = tuple(f"{name}{i}" for i in range(len(tasks.task_I)))
    return Scores(("anna", "ben"), names, tasks, "global", {})


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 5))


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
    found = Estimator(200)([scores], [one], [7])
    theirs = summarize(scores, TASKS, Resamples.draw(TASKS, 200, 7))
    assert found["P"].over_instances == theirs.p
    assert found["TTP"].over_instances == theirs.ttp
    assert found["P"].over_seeds is None
    assert found["P"].by_seed == (theirs.p.value,)
    # The draws are the seed's, whatever the estimator drew before.
    both = Estimator(200)
    both([scores], [one], [0])
    assert both([scores], [one], [7]) == found


def test_seeds_on_the_same_instances_share_the_resamples():
    """The interval is that of the scores' mean over seeds, instance by instance."""
    scores, one = [draw(1), draw(2), draw(3)], asked("x")
    found = Estimator(300)(scores, [one] * 3, [4, 5, 6])
    theirs = summarize(np.mean(scores, axis=0), TASKS, Resamples.draw(TASKS, 300, 4))
    for measure, span in (("P", theirs.p), ("TTP", theirs.ttp)):
        ours = found[measure].over_instances
        assert (ours.low, ours.high) == (span.low, span.high)
        assert ours.value == pytest.approx(span.value)
        assert found[measure].over_seeds == t_interval(found[measure].by_seed)


def test_seeds_on_other_instances_are_resampled_apart():
    """Errors of two independent test sets average out: each alone would be wider by sqrt(2)."""
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
    apart = Estimator(4000)(scores, own, [0, 1])["TTP"].over_instances
    alone = [
        Estimator(4000)([s], [o], [0])["TTP"].over_instances
        for s, o in zip(scores, own, strict=True)
    ]
    width = math.sqrt(sum((one.high - one.low) ** 2 for one in alone)) / 2
    assert apart.high - apart.low == pytest.approx(width, rel=0.05)
    assert apart.value == pytest.approx(np.mean([one.value for one in alone]))


def test_all_methods_have_the_same_draws():
    """A difference of 1 everywhere is 1 with certainty, and the two intervals differ by 1."""
    estimator, scores, one = Estimator(100), draw(5), asked("x")
    low = estimator([scores], [one], [0])["P"].over_instances
    high = estimator([scores + 1], [one], [0])["P"].over_instances
    minus = estimator([(scores + 1) - scores], [one], [0])["P"].over_instances
    assert (high.low, high.high) == pytest.approx((low.low + 1, low.high + 1))
    assert (minus.value, minus.low, minus.high) == pytest.approx((1, 1, 1))


def test_no_own_task_in_the_tests_is_no_p():
    tasks = Tasks(("a", "b"), TASKS.task_I, np.zeros((2, 2), bool))
    found = Estimator(20)([draw(0), draw(1)], [asked("x", tasks)] * 2, [0, 1])
    assert found["P"].text(2) == "–"
    assert found["TTP"].over_instances.known
