"""Scores, P and TTP by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from feddpa_jax.evaluate.estimating import summarize
from feddpa_jax.evaluate.metrics import exact_match, rouge1
from feddpa_jax.evaluate.personalization import Tasks, task_matrix

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
    summary = summarize(SCORES_CI, TASKS)
    # P = (2 + (4 + 7) / 2) / 2 = 3.75; TTP = ((2 + 5 + 1) / 3 + (0 + 4 + 7) / 3) / 2 = 19 / 6.
    assert summary.p.value == pytest.approx(3.75)
    assert summary.ttp.value == pytest.approx(19 / 6)


def test_clients_without_own_tests_are_left_out_of_p():
    own_CK = np.array([[True, False], [False, False]])
    # P of client 0 alone: its task a, (2 + 6) / 2 = 4. TTP of both: (4 + 1 + 9 + 9) / 4 = 5.75.
    tasks = Tasks(("a", "b"), np.array([0, 0, 1]), own_CK)
    scores_CI = np.array([[2.0, 6.0, 1.0], [9.0, 9.0, 9.0]])
    summary = summarize(scores_CI, tasks)
    assert (summary.p.value, summary.ttp.value) == (4.0, 5.75)
    assert summary.p_clients == 1


def test_no_client_has_an_own_task_in_the_tests():
    tasks = Tasks(TASKS.names, TASKS.task_I, np.zeros((2, 3), bool))
    summary = summarize(SCORES_CI, tasks)
    assert np.isnan(summary.p.value) and not summary.p.known and summary.p_clients == 0
    assert summary.ttp.value == pytest.approx(19 / 6)


def test_scores_that_are_not_finite_and_tasks_without_instances_are_our_mistakes():
    for bad in (np.nan, np.inf):
        with pytest.raises(AssertionError):
            summarize(np.where(SCORES_CI == 4.0, bad, SCORES_CI), TASKS)
    with pytest.raises(AssertionError, match="no instance"):
        Tasks(("a", "b"), np.array([0, 0]), np.array([[True, False]]))
