"""Differences between runs, paired: the same client's scores on the same test instances."""

import numpy as np

from feddpa_jax.evaluate.estimating import Summary, summarize
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.report.content import Run
from feddpa_jax.report.scores import Evaluation


def differences(run: Run, first: Run) -> dict[str, Summary]:
    """P and TTP of what a run answers with, minus another's, by metric.

    Intervals are those of the difference, answer by answer: two runs whose own intervals overlap
    may well differ.

    Args:
      run: the one.
      first: the other.

    Returns:
      Nothing where they do not answer the same instances of the same clients, or one of them was
      not evaluated in the mode that its method answers with.
    """
    one, other = run.evaluation, first.evaluation
    if one is None or other is None or not one.answers or not one.own_tasks:
        return {}
    for evaluation in (one, other):
        if evaluation.answers_with() != evaluation.judged_by:
            return {}
    if _instances(one) != _instances(other):
        return {}
    if one.own_tasks != other.own_tasks:
        return {}
    clients = list(one.own_tasks)
    indexes = sorted({index for _, index in one.answers})
    if len(one.answers) != len(clients) * len(indexes):
        return {}
    tasks = _tasks(one, clients, indexes)
    found = {}
    for metric, told in one.told.items():
        of_both = [
            [[own.answers[c, i].scores.get(metric) for i in indexes] for c in clients]
            for own in (one, other)
        ]
        if all(value is not None for scores in of_both for row in scores for value in row):
            one_CI, other_CI = np.array(of_both, float)
            found[metric] = summarize(one_CI - other_CI, tasks, span=told.span, paired=True)
    return found


def _tasks(evaluation: Evaluation, clients: list[str], indexes: list[int]) -> Tasks:
    names, own = tuple(evaluation.tasks), evaluation.own_tasks
    answers = evaluation.answers
    return Tasks(
        names,
        np.array([names.index(answers[clients[0], index].task) for index in indexes]),
        np.array([[name in own[client] for name in names] for client in clients]),
    )


def _instances(evaluation: Evaluation) -> dict[tuple[str, int], tuple[str, str]]:
    return {key: (answer.task, answer.instance) for key, answer in evaluation.answers.items()}
