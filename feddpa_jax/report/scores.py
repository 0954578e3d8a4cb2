"""An evaluation, read from the files in a run's folder `eval`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.evaluate.interval import KINDS, Estimate
from feddpa_jax.evaluate.metrics import Metric, in_order, told

MEASURES = {"P": "P: own task", "TTP": "TTP: all tasks"}
# What stands in a mode's place for an answer that ignores the question.
MOST_COMMON = "most common answer"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Answer(NamedTuple):
    """A client's answer to a test instance.

    Attributes:
      task: the instance's.
      instance: a digest of its text and target.
      scores: by metric.
    """

    task: str
    instance: str
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Score:
    """What a mode's answers come to in one metric.

    Attributes:
      estimates: by measure, "P" and "TTP".
      matrix: the mean score by client and task.
    """

    estimates: Mapping[str, Estimate]
    matrix: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `feddpa eval` wrote.

    Attributes:
      judged_by: the mode that the method answers with, as the evaluation says.
      round: of the checkpoint, from 0.
      tasks: of the test instances.
      own_tasks: those that a client trains on, by client.
      modes: by mode and metric.
      told: how each metric is told, in the order in which they are shown.
      answers: those of `answers_with()`, by client and instance.
      weights: quantiles of the local weight of the mode "instance", by "own" and "foreign".
      settings: sections of the configuration that it was made with.
      targets_without_words: how many targets of the test instances have no word.
      most_common: by metric, what each task's most common training answer scores.
      gains: by mode and metric, what its answers score above that.
      transductive: whether the weighting rule looks at several instances at once.
    """

    judged_by: str | None
    round: int | None
    tasks: Sequence[str]
    own_tasks: Mapping[str, Sequence[str]]
    modes: Mapping[str, Mapping[str, Score]]
    told: Mapping[str, Metric]
    answers: Mapping[tuple[str, int], Answer]
    weights: Mapping[str, Sequence[float]]
    settings: Mapping[str, Mapping[str, Any]]
    targets_without_words: int
    most_common: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    gains: Mapping[str, Mapping[str, Score]] = dataclasses.field(default_factory=dict)
    transductive: bool = False

    def shown(self, mode: str) -> str:
        """A mode as tables name it."""
        return f"{mode} (transductive)" if self.transductive and mode == "instance" else mode

    def answers_with(self) -> str:
        """The mode that the method is judged by; the last evaluated one where it is not there."""
        return _answers_with(self.judged_by, self.modes)

    def main_metric(self) -> str:
        """The metric of the client-by-task matrix that is shown first."""
        metrics = list(self.modes[self.answers_with()])
        return "nll" if "nll" in metrics else metrics[0]


def read_evaluation(summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Evaluation:
    """An evaluation from the contents of summary.json and instances.jsonl.

    Raises:
      LookupError, TypeError, ValueError, AttributeError: they are not as this version writes them.
    """
    modes = {
        mode: {name: _score(by_metric[name], summary) for name in in_order(by_metric)}
        for mode, by_metric in summary["modes"].items()
    }
    if not modes or not all(modes.values()):
        raise ValueError("a mode without scores")
    mode = _answers_with(summary.get("answers_with"), modes)
    own_tasks = summary.get("own_tasks", {})
    names = in_order(dict.fromkeys(name for own in modes.values() for name in own))
    return Evaluation(
        judged_by=summary.get("answers_with"),
        round=summary.get("round"),
        tasks=[str(task) for task in summary["tasks"]],
        own_tasks={client: list(own) for client, own in own_tasks.items()},
        modes=modes,
        told={name: told(name, summary.get("metrics", {})) for name in names},
        answers={
            (line["client"], int(line["index"])): Answer(
                line["task"], line["instance"], {k: float(v) for k, v in line["scores"].items()}
            )
            for line in lines
            if line["mode"] == mode
        },
        weights=_weights(own_tasks, lines) if own_tasks else {},
        settings={
            section: dict(summary[name])
            for section, name in (("weighting", "weighting"), ("eval", "decoding"))
            if summary.get(name)
        },
        targets_without_words=int(summary.get("targets_without_words", 0)),
        most_common={
            name: _score(own, summary)
            for name, own in summary.get("most_common_answer", {}).items()
        },
        gains={
            mode: {name: _score(own, summary) for name, own in by_metric.items()}
            for mode, by_metric in summary.get("gains", {}).items()
        },
        transductive=bool(summary.get("transductive", False)),
    )


def _answers_with(wanted: str | None, modes: Mapping[str, Any]) -> str:
    return wanted if wanted is not None and wanted in modes else list(modes)[-1]


def finite(value: Any) -> float:
    """A number that can be drawn.

    Raises:
      TypeError, ValueError: it is none.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    return float(value)


def to_estimate(found: Mapping[str, Any]) -> Estimate:
    """A value and its intervals; no value where no client has a task of its own in the tests.

    Raises:
      LookupError, TypeError, ValueError: it is something else.
    """
    estimate = Estimate.from_json(found)
    if estimate.known:
        finite(estimate.value)
        for span in (getattr(estimate, kind) for kind in KINDS):
            list(map(finite, (span.low, span.high) if span.bounded else ()))
    return estimate


def _score(found: Mapping[str, Any], summary: Mapping[str, Any]) -> Score:
    return Score(
        {measure: to_estimate(found[measure]) for measure in MEASURES},
        {
            client: {task: finite(row[task]) for task in summary["tasks"]}
            for client, row in found["matrix"].items()
        },
    )


def _weights(
    own_tasks: Mapping[str, Sequence[str]], lines: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
    sides: dict[str, list[float]] = {"own": [], "foreign": []}
    for line in lines:
        if line["mode"] == "instance":
            own = line["task"] in own_tasks.get(line["client"], ())
            sides["own" if own else "foreign"].append(float(line["local_weight"]))
    return {side: np.quantile(w, QUANTILES).tolist() for side, w in sides.items() if w}
