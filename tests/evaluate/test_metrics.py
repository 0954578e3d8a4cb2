"""Scores, P, TTP and intervals by hand."""

import dataclasses
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from feddpa_jax.evaluate import personalization as metrics
from feddpa_jax.evaluate.metrics import METRICS, exact_match, rouge1
from feddpa_jax.evaluate.personalization import (
    Interval,
    Resamples,
    Tasks,
    personalization,
    summarize,
    task_matrix,
)

ASCII = st.text(st.characters(max_codepoint=0x7F))
# Tasks a (instances 0, 1), b (2), c (3, 4); client 0 trains on a, client 1 on b and c.
TASKS = Tasks(
    ("a", "b", "c"), np.array([0, 0, 1, 2, 2]), np.array([[1, 0, 0], [0, 1, 1]], dtype=bool)
)
SCORES_CI = np.array([[1.0, 3.0, 5.0, 0.0, 2.0], [0.0, 0.0, 4.0, 6.0, 8.0]])


def test_rouge_and_exact_match():
    # 2 of 3 and 2 of 2 words: precision 2/3, recall 1, F1 = 0.8.
    assert rouge1("the black cat", "The cat!") == pytest.approx(80.0)
    assert rouge1("", "cat") == 0.0
    # No stemmer: other forms of a word are other words.
    assert rouge1("cats running", "cat runs") == 0.0


@given(ASCII, ASCII)
@settings(max_examples=200, deadline=None)
def test_rouge_on_ascii_is_that_of_rouge_score(prediction: str, target: str):
    expected = RougeScorer(["rouge1"]).score(target, prediction)["rouge1"].fmeasure
    assert rouge1(prediction, target) == 100 * expected


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        # "a", "正", "解" are 3 of the prediction's 4 words and all 3 of the target's:
        # precision 3/4, recall 1, F1 = 2 * 3/4 / (3/4 + 1) = 6/7.
        ("A. 不正解", "A. 正解", 600 / 7),
        # 3 of 4 words on both sides: F1 = 3/4.
        ("今日は雨", "今日は晴", 75.0),
        # 2 of 3, and 2 of 2: F1 = 2 * 2 / (3 + 2) = 4/5.
        ("الإجابة ليست صحيحة", "الإجابة صحيحة", 80.0),
        ("यह सही नहीं", "यह सही", 80.0),
        # ไ ม่ ใ ช่ against ใ ช่: 2 of 4, and 2 of 2: F1 = 4 / 6.
        ("ไม่ใช่", "ใช่", 400 / 6),
        # 1 of 2, and 1 of 2.
        ("정답 아님", "정답 맞음", 50.0),
        ("🙂 👍", "🙂 👎", 50.0),
        # Thumbs of two skin tones are two words.
        ("👍🏽", "👍🏿", 0.0),
        ("cafe\u0301", "CAFÉ", 100.0),
        ("cafe", "café", 0.0),
        # A word twice counts twice: 1 of 2, and 1 of 1: F1 = 2 / 3.
        ("はは", "は", 200 / 3),
        ("、。", "、。", 0.0),
        ("正解", "、。", 0.0),
    ],
)
def test_rouge_in_other_scripts(prediction: str, target: str, expected: float):
    assert rouge1(prediction, target) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "正解です。",
        "答案是北京。",
        "الإجابة صحيحة",
        "ถูกต้อง",
        "यह सही है",
        "정답입니다",
        "🎉👩\u200d💻",
    ],
)
def test_a_perfect_answer_has_a_rouge_of_100(text: str):
    assert rouge1(text, text) == 100.0


@pytest.mark.parametrize(
    ("prediction", "target", "same"),
    [
        ("the cat\n", "the cat", True),
        ("the cat", "the cat \t\n\u3000", True),
        ("", "\n", True),
        ("The cat", "the cat", False),
        (" the cat", "the cat", False),
        ("return x + 1", "    return x + 1", False),
        ("    return x + 1", "    return x + 1", True),
        ("\nyes", "\n\nyes", False),
        ("the  cat", "the cat", False),
        ("a\n b", "a\nb", False),
        ("é", "e\u0301", False),
    ],
)
def test_exact_match_ignores_white_space_at_the_end_alone(prediction: str, target: str, same: bool):
    assert exact_match(prediction, target) == 100.0 * same
    assert exact_match(target, prediction) == 100.0 * same


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
    # P of client 0 alone: its task a, (2 + 6) / 2 = 4. TTP of both: (4 + 1 + 9 + 9) / 4 = 5.75.
    tasks = Tasks(("a", "b"), np.array([0, 0, 1]), own_CK)
    scores_CI = np.array([[2.0, 6.0, 1.0], [9.0, 9.0, 9.0]])
    summary = summarize(scores_CI, tasks, Resamples.draw(tasks, 10, 0))
    assert (summary.p.value, summary.ttp.value) == (4.0, 5.75)
    assert summary.p_clients == 1


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
    """A gain that is the same within each task has no uncertainty, however noisy the scores."""
    resamples = Resamples.draw(TASKS, 100, 0)
    better_CI = SCORES_CI + np.array([1.0, 2.0, 5.0])[TASKS.task_I]
    gain = summarize(better_CI - SCORES_CI, TASKS, resamples)
    # P: (1 + (2 + 5) / 2) / 2 = 2.25; TTP: (1 + 2 + 5) / 3.
    assert dataclasses.astuple(gain.p) == pytest.approx((2.25, 2.25, 2.25))
    assert dataclasses.astuple(gain.ttp) == pytest.approx((8 / 3, 8 / 3, 8 / 3))
    np.testing.assert_allclose(gain.matrix_CK, [[1, 2, 5], [1, 2, 5]])
    # The scores themselves differ within tasks a and c: 1 and 3, 6 and 8.
    alone = summarize(better_CI, TASKS, resamples)
    assert alone.p.high - alone.p.low > 1


def test_ends_of_intervals():
    """2.5 and 97.5 % of the resamples, in this order."""
    # Resample s draws the first of two instances s times of 200: its mean is s / 200.
    tasks = Tasks(("a",), np.array([0, 0]), np.array([[True]]))
    first_S = np.arange(201) / 200
    resamples = Resamples(tasks, 201, (), np.stack([first_S, 1 - first_S], axis=1))
    found = summarize(np.array([[1.0, 0.0]]), tasks, resamples)
    for interval in (found.p, found.ttp):
        assert dataclasses.astuple(interval) == pytest.approx((0.5, 0.025, 0.975))


def test_resamples_follow_the_seed():
    first, again, other = (Resamples.draw(TASKS, 40, seed).weight_SI for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(first) == 40


def test_resamples_stay_within_tasks():
    resamples = Resamples.draw(TASKS, 50, 0)
    # Task b has one instance, so every resample is that instance.
    np.testing.assert_array_equal(resamples.weight_SI[:, 2], 1.0)
    for members in ([0, 1], [2], [3, 4]):
        np.testing.assert_allclose(resamples.weight_SI[:, members].sum(axis=1), 1.0)
    # Two draws of two instances: an instance comes 0, 1 or 2 times, and all of them happen.
    assert set(resamples.weight_SI[:, [0, 1, 3, 4]].ravel()) == {0.0, 0.5, 1.0}


def test_a_resample_is_the_matrix_of_the_instances_drawn():
    """Repeating instances as often as they were drawn gives the same means, for all clients."""
    resamples = Resamples.draw(TASKS, 20, 3)
    size_I = np.array([2, 2, 1, 2, 2])
    for weight_I, matrix in zip(resamples.weight_SI, resamples.matrices(SCORES_CI), strict=True):
        drawn = np.repeat(np.arange(5), np.rint(weight_I * size_I).astype(int))
        repeated = Tasks(TASKS.names, TASKS.task_I[drawn], TASKS.own_CK)
        np.testing.assert_allclose(matrix, task_matrix(SCORES_CI[:, drawn], repeated))


def test_measures_take_many_resamples_at_once():
    matrix_SCK = Resamples.draw(TASKS, 7, 0).matrices(SCORES_CI)
    each = [float(personalization(matrix_CK, TASKS.own_CK)) for matrix_CK in matrix_SCK]
    np.testing.assert_allclose(personalization(matrix_SCK, TASKS.own_CK), each)
    # By the module: a name that starts with test_ would be collected as a test.
    ttp = metrics.test_time_personalization
    np.testing.assert_allclose(ttp(matrix_SCK), [ttp(m) for m in matrix_SCK])


def test_paired_intervals_are_narrower_than_unpaired_ones():
    draw = np.random.default_rng(0)
    tasks = Tasks(("a",), np.zeros(200, int), np.array([[True]]))
    hard_CI = draw.normal(5.0, 2.0, (1, 200))
    better_CI = hard_CI + draw.normal(0.1, 0.2, (1, 200))
    resamples = Resamples.draw(tasks, 1000, 0)
    gain = summarize(better_CI - hard_CI, tasks, resamples).p
    alone = summarize(better_CI, tasks, resamples).p
    # The noise of a difference, 0.2, is a tenth of that of a score.
    assert gain.high - gain.low == pytest.approx((alone.high - alone.low) / 10, rel=0.3)
    assert gain.value == pytest.approx((better_CI - hard_CI).mean())


def test_scores_that_are_not_finite_and_tasks_without_instances_are_our_mistakes():
    resamples = Resamples.draw(TASKS, 2, 0)
    for bad in (np.nan, np.inf):
        with pytest.raises(AssertionError):
            summarize(np.where(SCORES_CI == 4.0, bad, SCORES_CI), TASKS, resamples)
    with pytest.raises(AssertionError, match="no instance"):
        Tasks(("a", "b"), np.array([0, 0]), np.array([[True, False]]))


def many_tasks(clients: int, tasks: int, each: int) -> tuple[np.ndarray, Tasks]:
    """Scores of clients that own one task each, the last client none; tasks in mixed order."""
    draw = np.random.default_rng(0)
    task_I = draw.permutation(np.repeat(np.arange(tasks), each))
    own_CK = np.zeros((clients, tasks), bool)
    own_CK[np.arange(clients - 1), np.arange(clients - 1) % tasks] = True
    own_CK[0, -1] = True
    names = tuple(f"task {k}" for k in range(tasks))
    return draw.normal(5.0, 2.0, (clients, tasks * each)), Tasks(names, task_I, own_CK)


def whole_formula(scores_CI: np.ndarray, tasks: Tasks, count: int, seed: int) -> np.ndarray:
    """P's and TTP's resamples from all weights and all matrices at once: [2, S]."""
    rng = np.random.default_rng([seed, 4])
    matrix_SCK = np.zeros((count, *tasks.own_CK.shape))
    for k in range(len(tasks.names)):
        members = np.flatnonzero(tasks.task_I == k)
        drawn = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), count)
        matrix_SCK[:, :, k] = (drawn / len(members)) @ scores_CI[:, members].T
    ttp = metrics.test_time_personalization(matrix_SCK)
    return np.stack([personalization(matrix_SCK, tasks.own_CK), ttp])


@pytest.mark.parametrize("bound", [None, 90_000, 2_000])
def test_resamples_in_chunks_are_the_whole_formula(monkeypatch, bound):
    """All matrices at once; kept weights, without matrices; and weights drawn with every use."""
    scores_CI, tasks = many_tasks(clients=6, tasks=5, each=11)
    if bound is not None:
        monkeypatch.setattr(metrics, "BOUND", bound)
    resamples = Resamples.draw(tasks, 200, 7)
    # 200 * 55 weights of 8 bytes are 88,000 bytes; of half of 2,000 bytes each chunk has 2 rows.
    assert len(list(resamples.chunks())) == (100 if bound == 2_000 else 1)
    whole_SI = np.concatenate(list(resamples.chunks()))
    found = summarize(scores_CI, tasks, resamples)
    expected = np.percentile(whole_formula(scores_CI, tasks, 200, 7), [2.5, 97.5], axis=1).T
    got = [[found.p.low, found.p.high], [found.ttp.low, found.ttp.high]]
    # With one chunk to the last bit: reports of runs that were evaluated before stay as they are.
    np.testing.assert_allclose(got, expected, rtol=0 if bound is None else 1e-12)
    np.testing.assert_allclose(found.matrix_CK, task_matrix(scores_CI, tasks), rtol=1e-14)
    value_I, other_I = scores_CI[:2]
    of_value_S, of_other_S = resamples.sums(value_I, other_I)
    np.testing.assert_allclose(of_value_S, whole_SI @ value_I, rtol=1e-12)
    np.testing.assert_allclose(of_other_S, whole_SI @ other_I, rtol=1e-12)


def test_no_client_has_a_task_of_its_own_in_chunks(monkeypatch):
    scores_CI, tasks = many_tasks(clients=1, tasks=2, each=3)
    tasks = Tasks(tasks.names, tasks.task_I, np.zeros((1, 2), bool))
    whole = summarize(scores_CI, tasks, Resamples.draw(tasks, 50, 0))
    monkeypatch.setattr(metrics, "BOUND", 500)
    found = summarize(scores_CI, tasks, Resamples.draw(tasks, 50, 0))
    assert np.isnan([found.p.value, found.p.low, whole.p.low]).all()
    assert found.ttp.low == pytest.approx(whole.ttp.low, rel=1e-12)


def test_memory_of_many_clients_is_bounded(monkeypatch):
    """120 clients with a task each and 1,000 resamples would take 115 MB as one array."""
    scores_CI, tasks = many_tasks(clients=120, tasks=120, each=2)
    monkeypatch.setattr(metrics, "BOUND", 2**20)
    tracemalloc.start()
    summarize(scores_CI, tasks, Resamples.draw(tasks, 1000, 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * 2**20


def test_intervals_as_text_and_as_json():
    value, none = Interval(0.54321, 0.25, 1.75), Interval(math.nan, math.nan, math.nan)
    assert value.text(2) == "0.54 [0.25, 1.75]" and none.text(2) == "–"
    assert value.to_json() == {"value": 0.54321, "low": 0.25, "high": 1.75}
    assert none.to_json() == {"value": None, "low": None, "high": None}
    assert Interval.from_json(value.to_json()) == value
    assert not Interval.from_json(none.to_json()).known and value.known
    with pytest.raises(LookupError):
        Interval.from_json({"value": 1.0})
    assert METRICS["nll"].cell(value) == "0.54 [0.25, 1.75]"
    assert METRICS["nll"].cell(value, fine=True) == "0.543 [0.250, 1.750]"
    assert METRICS["exact_match"].cell(value) == "0.5 [0.2, 1.8]"
