"""What an answer scores that ignores the question: always the task's most common training answer.

Where a task has few answers (yes or no, a class), that alone may score as high as a trained model;
a score by exact match or ROUGE says something only beside it. The rule is known as ZeroR.
"""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from feddpa_jax.evaluate.metrics import METRICS, score_texts
from feddpa_jax.types import Client, Example


def most_common_answers(clients: Iterable[Client]) -> dict[str, tuple[str, ...]]:
    """By task, the answers that most training examples of all clients have.

    Several that are equally common are all there (training data are often balanced); of answers
    that occur once each, the first alone.

    >>> yes, no = Example("Is 2 even?", "yes", task="even"), Example("Is 3?", "no", task="even")
    >>> most_common_answers([Client("anna", (no, yes)), Client("ben", (yes,))])
    {'even': ('yes',)}
    >>> most_common_answers([Client("anna", (no, no, yes, yes))])
    {'even': ('no', 'yes')}
    """
    clients = clients if isinstance(clients, Sequence) else tuple(clients)
    # Clients are read twice, so that memory holds a number an answer instead of all texts.
    hashes: dict[str, array[int]] = {}
    for client in clients:
        for example in client.train:
            hashes.setdefault(example.task, array("q")).append(hash(example.output))
    wanted = {task: _most_common(np.array(own)) for task, own in hashes.items()}
    found: dict[str, list[str]] = {task: [] for task in wanted}
    for client in clients:
        if not any(wanted.values()):
            break
        for example in client.train:
            if hash(example.output) in wanted[example.task]:
                wanted[example.task].remove(hash(example.output))
                found[example.task].append(example.output)
    return {task: tuple(answers) for task, answers in found.items()}


def _most_common(hashes: np.ndarray) -> set[int]:
    """The most common ones, or the first if each occurs once."""
    values, counts = np.unique(hashes, return_counts=True)
    return set(values[counts == counts.max()].tolist()) if counts.max() > 1 else {int(hashes[0])}


def most_common_scores(
    clients: Iterable[Client], instances: Sequence[Example], metrics: Iterable[str]
) -> dict[str, np.ndarray]:
    """The scores of these answers, float [I], by each metric that compares texts.

    Of a task's equally common answers the mean is taken: to pick the best would be to look at the
    test, and with few test instances it would always find one that seems good.

    Args:
      clients: whose training examples count.
      instances: what is answered; a task without a training example gets an empty answer.
      metrics: names of metrics, or FILE.py:NAME.

    Raises:
      UserError: a metric of the user's own fails.
    """
    answers = most_common_answers(clients)
    places: dict[str, list[int]] = {}
    for place, example in enumerate(instances):
        places.setdefault(example.task, []).append(place)
    found: dict[str, np.ndarray] = {}
    for name in metrics:
        if METRICS.find(name).score is None:
            continue
        score_I = found[name] = np.zeros(len(instances))
        for task, own in places.items():
            tried = [
                score_texts(name, [(answer, instances[i].output) for i in own])
                for answer in answers.get(task, ("",))
            ]
            score_I[own] = np.mean(tried, axis=0)
    return found
