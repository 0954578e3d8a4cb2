"""Differences between runs, paired: the same client's scores on the same test instances."""

import numpy as np

from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.evaluate.personalization import Resamples, Summary, Tasks, summarize
from feddpa_jax.report.content import Run


def differences(run: Run, first: Run) -> dict[str, Summary]:
    """P and TTP of what a run answers with, minus another's, by metric.

    Both have the same resamples, so intervals are those of the difference: two runs whose own
    intervals overlap may well differ.

    Args:
      run: the one.
      first: the other.

    Returns:
      Nothing where they do not answer the same instances of the same clients, or one of them was
      not evaluated in the mode that its method answers with.
    """
    if not run.answers or run.summary is None or first.summary is None:
        return {}
    for one, summary in ((run, run.summary), (first, first.summary)):
        if one.answers_with() != summary["answers_with"]:
            return {}
    if _instances(run) != _instances(first):
        return {}
    cells = {key: answer.task for key, answer in run.answers.items()}
    if run.summary["own_tasks"] != first.summary["own_tasks"]:
        return {}
    clients = list(run.summary["own_tasks"])
    indexes = sorted({index for _, index in cells})
    if len(cells) != len(clients) * len(indexes):
        return {}
    names = tuple(run.summary["tasks"])
    own = run.summary["own_tasks"]
    tasks = Tasks(
        names,
        np.array([names.index(cells[clients[0], index]) for index in indexes]),
        np.array([[name in own[client] for name in names] for client in clients]),
    )
    count, seed = int(run.config["eval.bootstrap"]), int(run.config["seed"])
    resamples = Resamples.draw(tasks, count, seed)
    found = {}
    for metric in METRICS:
        of_both = [
            [[one.answers[c, i].scores.get(metric) for i in indexes] for c in clients]
            for one in (run, first)
        ]
        if all(value is not None for scores in of_both for row in scores for value in row):
            one_CI, other_CI = np.array(of_both, float)
            found[metric] = summarize(one_CI - other_CI, tasks, resamples)
    return found


def _instances(run: Run) -> dict[tuple[str, int], tuple[str, str]]:
    return {key: (answer.task, answer.instance) for key, answer in run.answers.items()}
