"""What run folders say, read into what a report shows."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.files.strict_json import parse_json
from feddpa_jax.files.strict_yaml import parse_yaml
from feddpa_jax.run.folder import EVALUATION, LABORATORY, RunFolder, results_of
from feddpa_jax.run.history import parse_lines, read_history
from feddpa_jax.types import UserError

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
class Run:
    """A run folder's content.

    Attributes:
      label: a short name, unlike any other run's in the report.
      path: the folder, as it was given.
      config: the resolved configuration, by dotted field.
      environment: versions, devices, revision; by dotted name.
      rounds: a line of metrics.jsonl each.
      summary: eval/summary.json, or None.
      weights: quantiles of the local weight of the mode "instance", by "own" and "foreign".
      answers: those of the mode that the method answers with, by client and instance.
      laboratory: weigh/summary.json, or None.
    """

    label: str
    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    weights: Mapping[str, Sequence[float]]
    answers: Mapping[tuple[str, int], Answer]
    laboratory: Mapping[str, Any] | None

    @property
    def method(self) -> str:
        """`fed.method`."""
        return str(self.config["fed.method"])

    def modes(self) -> list[str]:
        """The evaluated modes."""
        return [] if self.summary is None else list(self.summary["modes"])

    def metrics(self, mode: str) -> list[str]:
        """The metrics that a mode was evaluated by."""
        return [] if self.summary is None else list(self.summary["modes"][mode])

    def answers_with(self) -> str | None:
        """The mode that the method is judged by; the last evaluated one where it is not there."""
        modes = self.modes()
        wanted = None if self.summary is None else self.summary.get("answers_with")
        return wanted if wanted in modes else modes[-1] if modes else None

    def value(self, mode: str, metric: str, measure: str) -> Mapping[str, float | None] | None:
        """Value and interval of a mode's P or TTP; None where it was not measured."""
        if self.summary is None:
            return None
        found = self.summary["modes"].get(mode, {}).get(metric)
        return None if found is None or found[measure]["value"] is None else found[measure]


def read_runs(
    folders: Sequence[Path], warn: Callable[[str], None] = lambda line: None
) -> list[Run]:
    """Reads run folders.

    Args:
      folders: of runs.
      warn: told of runs and results without checksums.

    Raises:
      UserError: one is no run, or a file in it is missing or damaged.
    """
    found = [_read(folder, warn) for folder in folders]
    labels = _labels(found)
    return [dataclasses.replace(run, label=label) for run, label in zip(found, labels, strict=True)]


def _read(folder: Path, warn: Callable[[str], None]) -> Run:
    own = RunFolder(folder)
    text = _text(folder / "config.yaml", own.read("config.yaml"))
    if text is None:
        raise UserError(f"{folder}: holds no run (no config.yaml); name the folder of a run")
    own.say_if_unchecked(warn)
    config = parse_yaml(text, str(folder / "config.yaml"))
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.yaml'}: holds no fields; get the file again")
    flat = _flat(config)
    if "fed.method" not in flat:
        raise UserError(f"{folder / 'config.yaml'}: has no fed.method; get the file again")
    found, tried = results_of(folder, EVALUATION), results_of(folder, LABORATORY)
    summary = _json(found.folder / "summary.json", found.read("summary.json"))
    instances = found.folder / "instances.jsonl"
    lines = None if summary is None else found.read(instances.name)
    answers = [] if lines is None else parse_lines(instances, lines, found.remedy, cut=False)
    laboratory = _json(tried.folder / "summary.json", tried.read("summary.json"))
    for results, content in ((found, summary), (tried, laboratory)):
        if content is not None:
            results.say_if_unchecked(warn)
    if summary is not None:
        # Scores may be of other settings than training was given.
        flat |= _evaluated(summary)
    environment = _json(folder / "environment.json", own.read("environment.json"))
    run = Run(
        label=folder.name,
        path=folder,
        config=flat,
        environment=_flat(environment or {}),
        rounds=read_history(folder),
        summary=summary,
        weights=_weights(answers, summary),
        answers={},
        laboratory=laboratory,
    )
    mode = run.answers_with()
    of_mode = {
        (line["client"], line["index"]): Answer(line["task"], line["instance"], line["scores"])
        for line in answers
        if line.get("mode") == mode
    }
    return dataclasses.replace(run, answers=of_mode)


def _evaluated(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run was evaluated with, by dotted field."""
    sections = {"weighting": summary.get("weighting"), "eval": summary.get("decoding")}
    return _flat({name: own for name, own in sections.items() if isinstance(own, dict)})


def _text(file: Path, content: bytes | None) -> str | None:
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: cannot be read as text: {error}; get the file again") from None


def _json(file: Path, content: bytes | None) -> dict[str, Any] | None:
    text = _text(file, content)
    if text is None:
        return None
    try:
        found = parse_json(text, "it", finite=False)
    except UserError:
        raise UserError(f"{file}: not valid JSON; make it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no JSON object; make it again")
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _weights(
    answers: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None
) -> dict[str, list[float]]:
    if summary is None or "own_tasks" not in summary:
        return {}
    sides: dict[str, list[float]] = {"own": [], "foreign": []}
    for line in answers:
        if line.get("mode") == "instance":
            own = line["task"] in summary["own_tasks"].get(line["client"], ())
            sides["own" if own else "foreign"].append(float(line["local_weight"]))
    return {side: np.quantile(w, QUANTILES).tolist() for side, w in sides.items() if w}


def _labels(runs: Sequence[Run]) -> list[str]:
    """Method names where they differ; else the fewest last parts of the paths that do."""
    methods = [run.method for run in runs]
    if len(set(methods)) == len(runs):
        return methods
    parts = [run.path.resolve().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(runs):
            return names
    raise UserError("the same run is named twice; name each once")


def differing(runs: Sequence[Run]) -> list[str]:
    """The configuration's fields in which runs differ."""
    names = list(dict.fromkeys(name for run in runs for name in run.config))
    return [n for n in names if len({json.dumps(run.config.get(n)) for run in runs}) > 1]
