"""The table of a metric by task: where a difference between runs comes from."""

from collections.abc import Mapping, Sequence

import numpy as np

from feddpa_jax.report.content import Run, metrics_of
from feddpa_jax.report.result_tables import Column, Table
from feddpa_jax.report.scores import MOST_COMMON, Evaluation, Score


def task_table(runs: Sequence[Run], metric: str) -> Table | None:
    """What runs answer with, task by task, and by how much it beats the most common answer.

    Args:
      runs: evaluated on the same tasks; those on others are left out.
      metric: which.

    Returns:
      None where no run has the metric in the mode that it answers with.
    """
    shown = [
        (run, run.evaluation, run.evaluation.modes[run.evaluation.answers_with()][metric])
        for run in runs
        if run.evaluation is not None
        and metric in run.evaluation.modes[run.evaluation.answers_with()]
    ]
    shown = [one for one in shown if list(one[1].tasks) == list(shown[0][1].tasks)]
    if not shown:
        return None
    tasks, told = list(shown[0][1].tasks), metrics_of(runs)[metric]
    number = f"{{:.{told.digits}f}}".format
    signed = f"{{:+.{told.digits}f}}".format
    columns = [Column("task", tasks)]
    constants = [own.most_common[metric] for _, own, _ in shown if metric in own.most_common]
    common = [_everyone(constants[0].matrix, task) for task in tasks] if constants else None
    if common is not None:
        columns.append(Column(MOST_COMMON, common, number))
    for run, evaluation, score in shown:
        own = [_own(evaluation, score, task) for task in tasks]
        columns.append(Column(f"{run.label}: own clients", own, number))
        if common is not None:
            gain = [None if o is None else o - c for o, c in zip(own, common, strict=True)]
            columns.append(Column(f"{run.label}: gain", gain, signed))
        everyone = [_everyone(score.matrix, task) for task in tasks]
        columns.append(Column(f"{run.label}: all clients", everyone, number))
    note = (
        " Gain: of the clients that train on the task, above always giving its most common "
        "training answer."
        if common is not None
        else ""
    )
    return Table(
        f"tasks_{metric}",
        f"{told.heading} by task, of what each run answers with.{note}",
        columns,
    )


def _own(evaluation: Evaluation, score: Score, task: str) -> float | None:
    """The mean over clients that train on a task; None if none does."""
    found = [score.matrix[c][task] for c, own in evaluation.own_tasks.items() if task in own]
    return float(np.mean(found)) if found else None


def _everyone(matrix: Mapping[str, Mapping[str, float]], task: str) -> float:
    return float(np.mean([row[task] for row in matrix.values()]))
