"""What always giving a task's most common training answer scores."""

from pathlib import Path

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.evaluate.most_common import most_common_answers, most_common_scores
from feddpa_jax.types import Client, Example

DATA = Path(__file__).parents[3] / "shared/data/feddpa_flan/dataset1"


def example(answer: str, task: str) -> Example:
    return Example("What?", answer, task=task)


CLIENTS = [
    Client("anna", tuple(example(a, "even") for a in ("yes", "no", "no", "yes"))),
    Client("ben", tuple(example(a, "class") for a in ("red", "blue", "red"))),
    Client("clara", (example("A text.", "free"), example("Another one.", "free"))),
]
TEST = [
    *(example(a, "even") for a in ("no", "no", "yes")),
    *(example(a, "class") for a in ("red", "blue")),
    *(example(a, "free") for a in ("A third text.", "A text.")),
    example("", "unknown"),
]


def test_by_hand():
    answers = {"even": ("yes", "no"), "class": ("red",), "free": ("A text.",)}
    assert most_common_answers(CLIENTS) == answers
    found = most_common_scores(CLIENTS, TEST, ["exact_match", "nll"])
    assert list(found) == ["exact_match"]  # A likelihood needs a model.
    # Of "yes" and "no", equally common, "no" scores best.
    assert found["exact_match"].tolist() == [100, 100, 0, 100, 0, 0, 100, 100]


def test_a_metric_of_which_low_is_good():
    """Then the equally common answer with the lowest score is what is to be beaten."""

    @fd.metrics.register("longer_by", lower_is_better=True)
    def longer_by(prediction: str, target: str) -> float:
        return float(len(prediction) - len(target))

    try:
        found = most_common_scores(CLIENTS, TEST[:3], ["longer_by"])
        assert found["longer_by"].tolist() == [0, 0, -1]
    finally:
        fd.metrics.remove("longer_by")


def test_of_the_papers_data():
    """Training answers are balanced there, test answers are not."""
    if not DATA.is_dir():
        pytest.skip(f"the paper's data are not at {DATA}")
    data = fd.load_federation(str(DATA))
    score_I = most_common_scores(data.clients, data.test, ["exact_match"])["exact_match"]
    task_I = np.array([own.task for own in data.test])
    means = {task: float(score_I[task_I == task].mean()) for task in set(task_I.tolist())}
    assert means["cola"] == 68 and means["glue_qqp"] == 65 and means["snli"] == 44
    assert np.mean(list(means.values())) == pytest.approx(32.125)
