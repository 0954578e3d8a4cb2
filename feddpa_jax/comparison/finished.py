"""A finished run of a comparison: every score of its answers, and what its training took."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from feddpa_jax.comparison.contender import Contender
from feddpa_jax.comparison.work import Work
from feddpa_jax.config import Config
from feddpa_jax.evaluate.interval import Estimate
from feddpa_jax.evaluate.personalization import Tasks


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of C clients' answers to I test instances.

    Attributes:
      clients: their names.
      instances: a digest of each instance's text and target.
      tasks: of the instances, and which are each client's own.
      answers_with: the mode that the method is judged by.
      by_mode: by mode and metric, [C, I].
      most_common: by metric and measure, what each task's most common training answer scores.
    """

    clients: tuple[str, ...]
    instances: tuple[str, ...]
    tasks: Tasks
    answers_with: str
    by_mode: Mapping[str, Mapping[str, np.ndarray]]
    most_common: Mapping[str, Mapping[str, Estimate]] = dataclasses.field(default_factory=dict)

    @property
    def answered(self) -> Mapping[str, np.ndarray]:
        """The scores of what the method answers with, by metric."""
        return self.by_mode[self.answers_with]

    @property
    def questions(self) -> tuple[Any, ...]:
        """What was asked of whom: scores of two runs can be paired where it is the same."""
        tasks = self.tasks
        own = tasks.own_CK.tobytes()
        return self.clients, self.instances, tasks.names, tuple(tasks.task_I.tolist()), own


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run of a comparison.

    Attributes:
      contender: its method.
      config: its configuration.
      scores: of its last round's answers.
      work: what was planned: rounds, tokens, updates.
      rounds: the lines of metrics.jsonl.
      folder: where it is; None of a run in memory.
    """

    contender: Contender
    config: Config
    scores: Scores
    work: Work
    rounds: Sequence[Mapping[str, Any]]
    folder: Path | None

    @property
    def seed(self) -> int:
        """Of everything random in it."""
        return self.config.seed

    @property
    def updates(self) -> float:
        """Updates that were made; those planned, if the run is of a version that did not count."""
        counted = all("updates" in line for line in self.rounds)
        return self.total("updates") if counted else self.work.updates

    def total(self, name: str) -> float:
        """The sum over rounds of a number in metrics.jsonl."""
        return sum(line[name] for line in self.rounds)


def read_scores(summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Scores:
    """The scores in what `summary.json` and `instances.jsonl` hold.

    Raises:
      LookupError, TypeError, ValueError: they are not as this version writes them.
    """
    own_tasks, names = summary["own_tasks"], tuple(summary["tasks"])
    clients = tuple(own_tasks)
    place = {client: c for c, client in enumerate(clients)}
    modes = tuple(summary["modes"])
    count = 1 + max(int(line["index"]) for line in lines)
    by_mode: dict[str, dict[str, np.ndarray]] = {
        mode: {metric: np.full((len(clients), count), np.nan) for metric in summary["modes"][mode]}
        for mode in modes
    }
    task_I, instances = [""] * count, [""] * count
    for line in lines:
        c, i = place[line["client"]], int(line["index"])
        task_I[i], instances[i] = line["task"], line["instance"]
        for metric, value in line["scores"].items():
            by_mode[line["mode"]][metric][c, i] = float(value)
    for by_metric in by_mode.values():
        for metric, scores_CI in by_metric.items():
            if not np.isfinite(scores_CI).all():
                raise ValueError(f"a score of {metric} is missing")
    tasks = Tasks(
        names,
        np.array([names.index(task) for task in task_I]),
        np.array([[name in own_tasks[client] for name in names] for client in clients]),
    )
    answers_with = str(summary["answers_with"])
    constant = {
        metric: {measure: Estimate.from_json(own[measure]) for measure in ("P", "TTP")}
        for metric, own in summary.get("most_common_answer", {}).items()
    }
    return Scores(clients, tuple(instances), tasks, answers_with, by_mode, constant)
