"""What run folders say, read into what a report shows."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from feddpa_jax.evaluate.metrics import Metric, in_order
from feddpa_jax.files.strict_json import parse_json
from feddpa_jax.files.strict_yaml import parse_yaml
from feddpa_jax.report.comparison import Comparison, read_comparison
from feddpa_jax.report.scores import Evaluation, finite, read_evaluation
from feddpa_jax.run.folder import EVALUATION, LABORATORY, RunFolder, results_of
from feddpa_jax.run.history import parse_lines, read_history
from feddpa_jax.types import UserError

_Part = TypeVar("_Part")
# What a file of another form than this version's makes of code that reads it.
_OF_ANOTHER_FORM = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


@dataclasses.dataclass(frozen=True)
class Round:
    """A round of training.

    Attributes:
      number: from 0.
      losses: the mean of a client's losses, by phase and client.
      real_tokens: those of examples.
      computed_tokens: these and padding.
      seconds: what it took.
      received: bytes that a client would receive.
      sent: bytes that a client would send.
    """

    number: int
    losses: Mapping[str, Mapping[str, float]]
    real_tokens: int
    computed_tokens: int
    seconds: float
    received: int
    sent: int


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder's content.

    Attributes:
      label: a short name, unlike any other run's in the report.
      path: the folder, as it was given.
      config: the resolved configuration, by dotted field.
      environment: versions, devices, revision; by dotted name.
      rounds: of training.
      evaluation: what `feddpa eval` found, if it was run.
      comparison: what `feddpa weigh` found, if it was run.
      problems: a line for each file that could not be read, with what to do about it.
    """

    label: str
    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rounds: Sequence[Round] = ()
    evaluation: Evaluation | None = None
    comparison: Comparison | None = None
    problems: Sequence[str] = ()

    @property
    def method(self) -> str:
        """`fed.method`."""
        return str(self.config["fed.method"])

    def command(self, name: str) -> str:
        """A command that works on this run, as one types it."""
        return f"feddpa {name} --run-dir {shlex.quote(str(self.path))}"


def read_runs(
    folders: Sequence[Path], warn: Callable[[str], None] = lambda line: None
) -> list[Run]:
    """Reads run folders.

    Of several runs, results that are damaged or of another version's form are left out: `problems`
    of the run names them.

    Args:
      folders: of runs.
      warn: called with a line for runs and results without checksums, and for problems.

    Raises:
      UserError: a folder is no run, or its configuration is damaged; or it is the only one and
        another file in it is damaged.
    """
    found = [_read(folder, warn) for folder in folders]
    for run in found:
        for problem in run.problems:
            if len(found) == 1:
                raise UserError(problem)
            warn(problem)
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
    problems: list[str] = []

    def part(read: Callable[[], _Part]) -> _Part | None:
        try:
            return read()
        except UserError as error:
            problems.append(str(error))
            return None

    evaluation = part(lambda: _evaluation(folder, warn))
    if evaluation is not None:
        # Scores may be of other settings than training was given.
        flat |= _flat(evaluation.settings)
    return Run(
        label=folder.name,
        path=folder,
        config=flat,
        environment=part(lambda: _environment(own)) or {},
        rounds=part(lambda: _rounds(folder)) or (),
        evaluation=evaluation,
        comparison=part(lambda: _comparison(folder, warn)),
        problems=problems,
    )


def _evaluation(folder: Path, warn: Callable[[str], None]) -> Evaluation | None:
    files = results_of(folder, EVALUATION)
    summary = _json(files.folder / "summary.json", files.read("summary.json"), files.remedy)
    if summary is None:
        return None
    instances = files.folder / "instances.jsonl"
    lines = files.read(instances.name)
    files.say_if_unchecked(warn)
    answers = [] if lines is None else parse_lines(instances, lines, files.remedy, cut=False)
    return _formed(files.folder, files.remedy, lambda: read_evaluation(summary, answers))


def _comparison(folder: Path, warn: Callable[[str], None]) -> Comparison | None:
    files = results_of(folder, LABORATORY)
    file = files.folder / "summary.json"
    summary = _json(file, files.read(file.name), files.remedy)
    if summary is None:
        return None
    files.say_if_unchecked(warn)
    return _formed(file, files.remedy, lambda: read_comparison(summary))


def _environment(own: RunFolder) -> dict[str, Any]:
    file = own.path / "environment.json"
    return _flat(_json(file, own.read(file.name), "start the training command again") or {})


def _rounds(folder: Path) -> list[Round]:
    lines = read_history(folder)
    remedy = "train again into a new --run-dir"
    return _formed(folder / "metrics.jsonl", remedy, lambda: list(map(_round, lines)))


def _round(line: Mapping[str, Any]) -> Round:
    losses = {
        phase: {client: finite(own["mean"]) for client, own in clients.items()}
        for phase, clients in line["phases"].items()
    }
    return Round(
        line["round"],
        losses,
        int(line["real_tokens"]),
        int(line["computed_tokens"]),
        float(line["seconds"]),
        int(line["client_bytes_received"]),
        int(line["client_bytes_sent"]),
    )


def _formed(place: Path, remedy: str, read: Callable[[], _Part]) -> _Part:
    try:
        return read()
    except UserError:
        raise
    except _OF_ANOTHER_FORM as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{place}: not in the form that this version writes ({what}); {remedy}"
        ) from None


def _text(file: Path, content: bytes | None) -> str | None:
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: cannot be read as text: {error}; get the file again") from None


def _json(file: Path, content: bytes | None, remedy: str) -> dict[str, Any] | None:
    text = _text(file, content)
    if text is None:
        return None
    try:
        found = parse_json(text, "it", finite=False)
    except UserError:
        raise UserError(f"{file}: not valid JSON; {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no JSON object; {remedy}")
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


def metrics_of(runs: Sequence[Run]) -> dict[str, Metric]:
    """The metrics that any run was evaluated by, in the order in which they are shown."""
    found: dict[str, Metric] = {}
    for run in runs:
        if run.evaluation is not None:
            found = {**run.evaluation.told, **found}
    return {name: found[name] for name in in_order(found)}


def differing(runs: Sequence[Run]) -> list[str]:
    """The configuration's fields in which runs differ."""
    names = list(dict.fromkeys(name for run in runs for name in run.config))
    return [n for n in names if len({json.dumps(run.config.get(n)) for run in runs}) > 1]
