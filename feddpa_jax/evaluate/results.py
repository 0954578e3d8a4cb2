"""Evaluation results on disk (summary.json, instances.jsonl) and as tables."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from feddpa_jax.evaluate.evaluation import ModeResult, Setting
from feddpa_jax.evaluate.metrics import (
    METRICS,
    Interval,
    Resamples,
    Summary,
    Tasks,
    summarize,
    without_words_note,
)
from feddpa_jax.files.disk import to_json
from feddpa_jax.files.escape import json_text
from feddpa_jax.files.results import write_results
from feddpa_jax.types import Example

# What the paper compares: (mode, other mode, measure).
_COMPARISONS = (("instance", "global", "p"), ("instance", "local", "ttp"))


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that an evaluation says.

    Attributes:
      settings: what describes the evaluation (method, weighting, decoding, ...).
      summaries: by mode and metric.
      differences: instance-wise minus global, and minus local, by metric, where both were run.
      weights: mean local weight of the mode "instance" on own and on foreign tasks.
    """

    settings: Mapping[str, Any]
    summaries: dict[str, dict[str, Summary]]
    differences: dict[str, dict[str, Summary]]
    weights: dict[str, float]


def make_report(
    results: Mapping[str, ModeResult],
    tasks: Tasks,
    *,
    settings: Mapping[str, Any],
    bootstrap: int,
    seed: int,
) -> Report:
    """Summaries with bootstrap intervals; all modes share the resamples."""
    resamples = Resamples.draw(tasks, bootstrap, seed)
    summaries = {
        mode: {name: summarize(s, tasks, resamples) for name, s in result.scores_CI.items()}
        for mode, result in results.items()
    }
    differences = {
        f"{mode} - {other}": {
            name: summarize(scores - results[other].scores_CI[name], tasks, resamples)
            for name, scores in results[mode].scores_CI.items()
        }
        for mode, other, _ in _COMPARISONS
        if mode in results and other in results
    }
    weights = {}
    if "instance" in results:
        local_CI = results["instance"].weights.means().local_CI
        own_CI = tasks.own_CK[:, tasks.task_I]
        for name, chosen in (("own", own_CI), ("foreign", ~own_CI)):
            if chosen.any():
                weights[name] = float(local_CI[chosen].mean())
    return Report(settings, summaries, differences, weights)


def write_report(
    folder: Path,
    report: Report,
    results: Mapping[str, ModeResult],
    setting: Setting,
    rules: Mapping[str, bytes] | None = None,
) -> None:
    """Writes summary.json and instances.jsonl, and the files of the user's own rules.

    Raises:
      UserError: they cannot be written.
    """
    tasks = setting.tasks()
    clients = [client.name for client in setting.clients]
    content = {
        **report.settings,
        "tasks": list(tasks.names),
        "own_tasks": {
            client: [name for name, own in zip(tasks.names, own_K, strict=True) if own]
            for client, own_K in zip(clients, tasks.own_CK, strict=True)
        },
        "modes": {
            mode: {name: _json(summary, clients, tasks) for name, summary in by_metric.items()}
            for mode, by_metric in report.summaries.items()
        },
        "differences": {
            pair: {name: _json(summary, clients, tasks) for name, summary in by_metric.items()}
            for pair, by_metric in report.differences.items()
        },
        "mean_local_weight": report.weights,
    }
    files = {
        "instances.jsonl": "".join(_instance_lines(results, setting)),
        "summary.json": to_json(content),
    }
    write_results(folder, files, rules or {})


def _json(summary: Summary, clients: Sequence[str], tasks: Tasks) -> dict[str, Any]:
    def interval(value: Interval) -> dict[str, float | None]:
        # No client has an own task in the tests: null, not NaN, which is no JSON.
        return {k: None if np.isnan(v) else v for k, v in dataclasses.asdict(value).items()}

    return {
        "P": interval(summary.p),
        "TTP": interval(summary.ttp),
        "matrix": {
            client: dict(zip(tasks.names, row.tolist(), strict=True))
            for client, row in zip(clients, summary.matrix_CK, strict=True)
        },
    }


def _digest(example: Example) -> str:
    """What tells an instance from any other, whatever its place in the test set."""
    text = json.dumps([example.instruction, example.input, example.output])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _instance_lines(results: Mapping[str, ModeResult], setting: Setting):
    digests = [_digest(example) for example in setting.instances]
    for mode, result in results.items():
        weights = result.weights.means()
        by_layer = result.weights.local_CI if result.weights.local_CI.ndim == 3 else None
        for c, client in enumerate(setting.clients):
            for i, example in enumerate(setting.instances):
                line = {
                    "mode": mode,
                    "client": client.name,
                    "task": example.task,
                    "index": i,
                    "instance": digests[i],
                    "similarity": None
                    if weights.similarity_CI is None
                    else float(weights.similarity_CI[c, i]),
                    "global_weight": float(weights.global_CI[c, i]),
                    "local_weight": float(weights.local_CI[c, i]),
                    "prediction": result.predictions_CI[c][i] if result.predictions_CI else None,
                    "target": example.output,
                    "scores": {n: float(s[c, i]) for n, s in result.scores_CI.items()},
                }
                if by_layer is not None:
                    line["local_weight_by_layer"] = by_layer[c, i].tolist()
                yield json_text(line) + "\n"


def _cell(value: Interval) -> str:
    if np.isnan(value.value):
        return "-"
    digits = 2 if abs(value.value) < 20 else 1
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def render(report: Report) -> Group:
    """The results as people read them: a table a metric, then the comparisons and the weights."""
    metrics = list(next(iter(report.summaries.values())))
    parts: list[Any] = []
    for name in metrics:
        told = METRICS[name]
        table = Table(title=f"{told.title} ({told.better} is better)", title_justify="left")
        table.add_column("mode")
        table.add_column("P: own task", justify="right")
        table.add_column("TTP: all tasks", justify="right")
        for mode, by_metric in report.summaries.items():
            answers = mode == report.settings.get("answers_with")
            table.add_row(
                f"{mode} *" if answers else mode,
                _cell(by_metric[name].p),
                _cell(by_metric[name].ttp),
            )
        parts.append(table)
    lines = [
        "Brackets: 95 % bootstrap intervals over test instances. *: what this method answers with."
    ]
    for mode, other, measure in _COMPARISONS:
        by_metric = report.differences.get(f"{mode} - {other}")
        if by_metric:
            values = "; ".join(
                f"{METRICS[name].title} {_cell(getattr(summary, measure))}"
                for name, summary in by_metric.items()
            )
            lines.append(f"{measure.upper()}, {mode} minus {other}: {values}")
    note = without_words_note(report.settings.get("targets_without_words", 0))
    if note and "rouge1" in metrics:
        lines.append(note)
    if report.weights:
        weights = ", ".join(f"{name} tasks {w:.3f}" for name, w in report.weights.items())
        scales = report.settings["weighting"]["scales"]
        lines.append(f"mean local weight on {weights} (weighting.scales: {scales})")
    return Group(*parts, "\n".join(lines))
