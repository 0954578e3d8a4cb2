"""The result of an evaluation: a value, a data frame, summary.json and instances.jsonl."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feddpa_jax.adapters.dual import MODES
from feddpa_jax.evaluate.estimating import Summary, summarize
from feddpa_jax.evaluate.evaluation import Asked, ModeResult
from feddpa_jax.evaluate.metrics import METRICS, about
from feddpa_jax.evaluate.most_common import most_common_scores
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.evaluate.task_scores import TaskScore, task_scores
from feddpa_jax.files.disk import to_json
from feddpa_jax.files.escape import json_text
from feddpa_jax.files.result_files import write_results
from feddpa_jax.short_repr import short_repr
from feddpa_jax.types import Example

if TYPE_CHECKING:
    import pandas


def comparisons(answers_with: str | None) -> tuple[tuple[str, str, str], ...]:
    """The paper's comparisons: (mode, other mode, measure); and those of a method's own mode.

    >>> comparisons("fused")[2:]
    (('fused', 'global', 'p'), ('fused', 'local', 'ttp'))
    """
    own = [] if answers_with is None or answers_with in MODES else [answers_with]
    return tuple(
        pair
        for mode in ("instance", *own)
        for pair in ((mode, "global", "p"), (mode, "local", "ttp"))
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation; `found["nll"]["instance"].p` is an estimate.

    Attributes:
      settings: what describes the evaluation (method, weighting, decoding, ...).
      summaries: by mode and metric.
      differences: instance-wise minus global, and minus local, by metric, where both were run;
        likewise of the mode of its own that a method answers with.
      weights: mean local weight of the mode "instance" on own and on foreign tasks.
      results: every score, weight and answer, by mode.
      setting: the clients and the instances.
      most_common: by metric that compares texts, what each task's most common training answer
        scores, whatever is asked (see `most_common_scores`).
      gains: by mode and such a metric, what its answers score above that.

    Example:
      ```
      scores = run.evaluate()
      print(scores["nll"]["instance"].p, scores.matrix("nll", "instance"))
      scores.to_pandas()
      ```
    """

    settings: Mapping[str, Any]
    summaries: Mapping[str, Mapping[str, Summary]]
    differences: Mapping[str, Mapping[str, Summary]]
    weights: Mapping[str, float]
    results: Mapping[str, ModeResult]
    setting: Asked
    most_common: Mapping[str, Summary] = dataclasses.field(default_factory=dict)
    gains: Mapping[str, Mapping[str, Summary]] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """In a few lines; see `short_repr`."""
        lines = [
            f"{metric}: "
            + ", ".join(f"{mode} {_scores(own)}" for mode, own in self[metric].items())
            for metric in self.metrics
        ]
        return short_repr(
            self,
            *lines,
            method=self.settings.get("method"),
            round=self.settings.get("round"),
            clients=len(self.setting.names),
            instances=len(self.setting.instances),
        )

    def __getitem__(self, metric: str) -> dict[str, Summary]:
        """A metric's P, TTP and matrix by mode."""
        if metric not in self.metrics:
            raise KeyError(f"{metric!r} was not evaluated; there are {', '.join(self.metrics)}")
        return {mode: by_metric[metric] for mode, by_metric in self.summaries.items()}

    @property
    def modes(self) -> tuple[str, ...]:
        """The inference modes."""
        return tuple(self.summaries)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics."""
        return tuple(next(iter(self.summaries.values())))

    @property
    def instances(self) -> list[dict[str, Any]]:
        """Every answer and weight, as a line of instances.jsonl has them."""
        return list(_instance_lines(self.results, self.setting))

    def matrix(self, metric: str, mode: str) -> dict[str, dict[str, float]]:
        """Mean scores by client and task."""
        return _matrix(self[metric][mode], self.setting.names, self.setting.tasks())

    def by_task(self, metric: str, mode: str) -> dict[str, TaskScore]:
        """A metric by task: of the clients that train on it, of all, and the most common answer's.

        This is where a difference in P or TTP comes from.
        """
        tasks = self.setting.tasks()
        constant = self.most_common.get(metric)
        return task_scores(
            self[metric][mode].matrix_CK,
            tasks,
            None if constant is None else constant.matrix_CK,
        )

    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        return _summary(self)

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per metric and mode: P and TTP, each with its intervals of every kind.

        The ends are in columns such as `P_over_clients_low`; NaN where there is no interval.
        """
        import pandas

        rows = [
            {
                "metric": metric,
                "mode": mode,
                **summary.p.columns("P"),
                **summary.ttp.columns("TTP"),
            }
            for metric in self.metrics
            for mode, summary in self[metric].items()
        ]
        return pandas.DataFrame(rows)


def _scores(summary: Summary) -> str:
    p, ttp = (f"{one.value:.4g}" if one.known else "–" for one in (summary.p, summary.ttp))
    return f"P {p} TTP {ttp}"


def make_evaluation(
    results: Mapping[str, ModeResult],
    setting: Asked,
    *,
    settings: Mapping[str, Any],
) -> Evaluation:
    """Summaries of all modes, and of their differences answer by answer."""
    tasks = setting.tasks()

    def summary(name: str, scores_CI: np.ndarray, *, paired: bool = False) -> Summary:
        return summarize(scores_CI, tasks, span=METRICS.find(name).span, paired=paired)

    summaries = {
        mode: {name: summary(name, scores_CI) for name, scores_CI in result.scores_CI.items()}
        for mode, result in results.items()
    }
    differences = {
        f"{mode} - {other}": {
            name: summary(
                name, scores_CI - results[other].scores_CI[name].astype(float), paired=True
            )
            for name, scores_CI in results[mode].scores_CI.items()
        }
        for mode, other, _ in comparisons(settings.get("answers_with"))
        if mode in results and other in results
    }
    weights = {}
    if "instance" in results:
        local_CI = results["instance"].weights.means().local_CI
        own_CI = tasks.own_CK[:, tasks.task_I]
        for name, chosen in (("own", own_CI), ("foreign", ~own_CI)):
            if chosen.any():
                weights[name] = float(local_CI[chosen].mean())
    metrics = list(next(iter(summaries.values())))
    constant = {
        name: np.broadcast_to(score_I, (len(setting.clients), len(score_I)))
        for name, score_I in most_common_scores(setting.clients, setting.instances, metrics).items()
    }
    return Evaluation(
        settings,
        summaries,
        differences,
        weights,
        results,
        setting,
        most_common={name: summary(name, scores_CI) for name, scores_CI in constant.items()},
        gains={
            mode: {
                name: summary(name, result.scores_CI[name] - scores_CI, paired=True)
                for name, scores_CI in constant.items()
            }
            for mode, result in results.items()
        },
    )


def write_evaluation(
    folder: Path, found: Evaluation, rules: Mapping[str, bytes] | None = None
) -> None:
    """Writes summary.json and instances.jsonl, and the files of the user's own rules.

    Raises:
      UserError: they cannot be written.
    """
    lines = (json_text(line) + "\n" for line in _instance_lines(found.results, found.setting))
    files = {"instances.jsonl": lines, "summary.json": to_json(_summary(found))}
    write_results(folder, files, rules or {})


def _summary(found: Evaluation) -> dict[str, Any]:
    tasks = found.setting.tasks()
    clients = found.setting.names

    def told(summaries: Mapping[str, Mapping[str, Summary]]) -> dict[str, Any]:
        return {
            key: {name: _json(summary, clients, tasks) for name, summary in by_metric.items()}
            for key, by_metric in summaries.items()
        }

    # What a page needs to tell metrics that are not known where it is made.
    own = about(found.metrics)
    return {
        **found.settings,
        "tasks": list(tasks.names),
        "own_tasks": {
            client: [name for name, own in zip(tasks.names, own_K, strict=True) if own]
            for client, own_K in zip(clients, tasks.own_CK, strict=True)
        },
        "modes": told(found.summaries),
        "differences": told(found.differences),
        "mean_local_weight": dict(found.weights),
        "most_common_answer": told({"": found.most_common})[""],
        "gains": told(found.gains),
        **({"metrics": own} if own else {}),
    }


def settings_in(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What describes an evaluation (`Evaluation.settings`) in the content of its summary.json."""
    made = ("tasks", "own_tasks", "modes", "differences", "mean_local_weight")
    made += ("most_common_answer", "gains", "metrics")
    return {name: value for name, value in summary.items() if name not in made}


def _matrix(summary: Summary, clients: Sequence[str], tasks: Tasks) -> dict[str, dict[str, float]]:
    return {
        client: dict(zip(tasks.names, row.tolist(), strict=True))
        for client, row in zip(clients, summary.matrix_CK, strict=True)
    }


def _json(summary: Summary, clients: Sequence[str], tasks: Tasks) -> dict[str, Any]:
    return {
        "P": summary.p.to_json(),
        "TTP": summary.ttp.to_json(),
        "matrix": _matrix(summary, clients, tasks),
    }


def digest(example: Example) -> str:
    """A digest that identifies an instance, whatever its place in the test set."""
    text = json.dumps([example.instruction, example.input, example.output])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _instance_lines(results: Mapping[str, ModeResult], setting: Asked) -> Iterator[dict[str, Any]]:
    digests = [digest(example) for example in setting.instances]
    for mode, result in results.items():
        weights = result.weights.means()
        by_layer = result.weights.local_CI if result.weights.local_CI.ndim == 3 else None
        for c, client in enumerate(setting.names):
            texts = result.predictions_CI[c] if result.predictions_CI else None
            for i, example in enumerate(setting.instances):
                line = {
                    "mode": mode,
                    "client": client,
                    "task": example.task,
                    "index": i,
                    "instance": digests[i],
                    "similarity": None
                    if weights.similarity_CI is None
                    else float(weights.similarity_CI[c, i]),
                    "global_weight": float(weights.global_CI[c, i]),
                    "local_weight": float(weights.local_CI[c, i]),
                    "prediction": texts[i] if texts is not None else None,
                    "target": example.output,
                    "scores": {n: float(s[c, i]) for n, s in result.scores_CI.items()},
                }
                if by_layer is not None:
                    line["local_weight_by_layer"] = by_layer[c, i].tolist()
                yield line
