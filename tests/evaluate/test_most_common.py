"""What always giving a task's most common training answer scores."""

from pathlib import Path

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.evaluate.most_common import most_common_answers, most_common_scores
from feddpa_jax.types import Client, Example


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
    # "yes" and "no" are equally common: half of what each scores.
    assert found["exact_match"].tolist() == [50, 50, 50, 100, 0, 0, 100, 100]


def test_of_the_papers_data(shared_data: Path):
    """Training answers are balanced there, test answers are not."""
    data = fd.load_federation(str(shared_data / "dataset1"))
    score_I = most_common_scores(data.clients, data.test, ["exact_match"])["exact_match"]
    task_I = np.array([own.task for own in data.test])
    means = {task: float(score_I[task_I == task].mean()) for task in set(task_I.tolist())}
    assert means["cola"] == means["glue_qqp"] == means["wic"] == 50
    assert means["snli"] == pytest.approx(100 / 3)
    assert means["definite_pronoun_resolution"] == 1  # "John", the most common of names
    assert np.mean(list(means.values())) == pytest.approx(25.125, abs=0.05)
