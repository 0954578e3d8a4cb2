"""Scores, P, TTP and intervals by hand."""

import numpy as np
import pytest

from feddpa_jax.metrics import (
    Resamples,
    Tasks,
    exact_match,
    personalization,
    rouge1,
    summarize,
    task_matrix,
)

# Tasks a (instances 0, 1), b (2), c (3, 4); client 0 trains on a, client 1 on b and c.
TASKS = Tasks(
    ("a", "b", "c"), np.array([0, 0, 1, 2, 2]), np.array([[1, 0, 0], [0, 1, 1]], dtype=bool)
)
SCORES_CI = np.array([[1.0, 3.0, 5.0, 0.0, 2.0], [0.0, 0.0, 4.0, 6.0, 8.0]])


def test_rouge_and_exact_match():
    # 2 of 3 and 2 of 2 words: precision 2/3, recall 1, F1 = 0.8.
    assert rouge1("the black cat", "The cat!") == pytest.approx(80.0)
    assert rouge1("", "cat") == 0.0
    assert exact_match(" the cat\n", "the cat") == 100.0
    assert exact_match("The cat", "the cat") == 0.0


def test_p_and_ttp_by_hand():
    np.testing.assert_allclose(task_matrix(SCORES_CI, TASKS), [[2, 5, 1], [0, 4, 7]])
    summary = summarize(SCORES_CI, TASKS, Resamples.draw(TASKS, 10, 0))
    # P = (2 + (4 + 7) / 2) / 2 = 3.75; TTP = ((2 + 5 + 1) / 3 + (0 + 4 + 7) / 3) / 2 = 19 / 6.
    assert summary.p.value == pytest.approx(3.75)
    assert summary.ttp.value == pytest.approx(19 / 6)


def test_clients_without_own_tests_are_left_out_of_p():
    own_CK = np.array([[True, False], [False, False]])
    assert personalization(np.array([[4.0, 1.0], [9.0, 9.0]]), own_CK) == 4.0
    assert np.isnan(personalization(np.ones((1, 2)), np.zeros((1, 2), bool)))


def test_intervals_cover_and_are_seeded():
    draw = np.random.default_rng(0)
    tasks = Tasks(("a",), np.zeros(400, int), np.array([[True]]))
    scores_CI = draw.normal(5.0, 2.0, (1, 400))
    summary = summarize(scores_CI, tasks, Resamples.draw(tasks, 2000, 1))
    # The mean's deviation is 2 / sqrt(400) = 0.1: about 1.96 of them to either side.
    assert summary.p.high - summary.p.low == pytest.approx(4 * 0.098, rel=0.15)
    assert summary.p.low < summary.p.value < summary.p.high
    again = summarize(scores_CI, tasks, Resamples.draw(tasks, 2000, 1))
    assert again.p == summary.p


def test_differences_are_paired():
    """A constant gain has no uncertainty, however noisy the scores."""
    gain = summarize(SCORES_CI + 1.0 - SCORES_CI, TASKS, Resamples.draw(TASKS, 100, 0))
    assert (gain.p.low, gain.p.high) == pytest.approx((1.0, 1.0))


def test_resamples_stay_within_tasks():
    weight_SIK = Resamples.draw(TASKS, 50, 0).weight_SIK
    np.testing.assert_allclose(weight_SIK.sum(axis=1), 1.0, atol=1e-6)
    assert (weight_SIK[:, 0, 1:] == 0).all()
