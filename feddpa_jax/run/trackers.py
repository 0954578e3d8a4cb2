"""Following a run elsewhere: TensorBoard, Weights & Biases and trackio behind one small interface.

`metrics.jsonl` is always written; these are optional installs that `track.to` names. A tracker that
fails in the middle of a run is dropped; training continues.
"""

import contextlib
import importlib
import importlib.util
import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from feddpa_jax.files.disk import make_folder, writing
from feddpa_jax.files.escape import one_line
from feddpa_jax.files.strict_json import parse_json
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.types import UserError

_log = logging.getLogger(__name__)


class Tracker(NamedTuple):
    """Where numbers go: `log(step, values)`, and `close()` at the end."""

    log: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


class Place(NamedTuple):
    """What a tracker is opened with.

    Attributes:
      folder: the run's.
      project: the project's name.
      name: the run's name.
      ident: the run's own identity, the same when it is resumed.
      config: the resolved configuration, by dotted field.
    """

    folder: Path
    project: str
    name: str
    ident: str
    config: Mapping[str, Any]


def _tensorboard(place: Place) -> Tracker:
    package = importlib.import_module("tensorboardX")
    writer = package.SummaryWriter(str(place.folder / "tensorboard"))
    fields = "\n".join(
        f"    {name}: {one_line(str(value))}" for name, value in place.config.items()
    )
    writer.add_text("configuration", fields)

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, writer.close)


def _wandb(place: Place) -> Tracker:
    run = importlib.import_module("wandb").init(
        project=place.project,
        name=place.name,
        id=place.ident,
        resume="allow",
        dir=str(place.folder),
        config=dict(place.config),
    )
    return Tracker(lambda step, values: run.log(dict(values), step=step), run.finish)


def _trackio(place: Place) -> Tracker:
    run = importlib.import_module("trackio").init(
        project=place.project,
        name=f"{place.name}-{place.ident[:6]}",
        config=dict(place.config),
        resume="allow",
    )
    return Tracker(lambda step, values: run.log(dict(values), step=step), run.finish)


# By name: the package that it needs, and how it is opened.
TRACKERS: dict[str, tuple[str, Callable[[Place], Tracker]]] = {
    "tensorboard": ("tensorboardX", _tensorboard),
    "wandb": ("wandb", _wandb),
    "trackio": ("trackio", _trackio),
}


def check_installed(names: Sequence[str]) -> None:
    """Refuses trackers whose packages are not there, before anything is done.

    Raises:
      UserError: the package, and how to get it.
    """
    for name in names:
        package, _ = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"track.to: {name} needs the package {package}; pip install {package}, or leave "
                f"{name} out"
            )


@contextlib.contextmanager
def tracking(
    names: Sequence[str],
    folder: Path,
    *,
    project: str,
    config: Mapping[str, Any],
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A function that logs a step's values to all named trackers.

    Args:
      names: of `TRACKERS`; none for a function that does nothing.
      folder: the run's; it keeps the run's identity for when it is resumed.
      project: the project's name there.
      config: the resolved configuration, by dotted field.

    Raises:
      UserError: one cannot be opened.
    """
    open_: dict[str, Tracker] = {}
    for name in names:
        place = Place(folder, project, one_line(folder.absolute().name), _identity(folder), config)
        try:
            open_[name] = TRACKERS[name][1](place)
        except Exception as error:
            raise UserError(
                f"track.to: {name} cannot be opened ({_reason(error)}); fix that, or leave {name} "
                "out"
            ) from None

    def each(act: Callable[[Tracker], None]) -> None:
        for name in list(open_):
            try:
                act(open_[name])
            except Exception as error:
                del open_[name]
                _log.warning(
                    f"track.to: {name} failed ({_reason(error)}); training continues without it"
                )

    try:
        yield lambda step, values: each(lambda tracker: tracker.log(step, values))
    finally:
        each(lambda tracker: tracker.close())


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _identity(folder: Path) -> str:
    run, file = RunFolder(folder), folder / "tracking.json"
    content = run.read(file.name)
    if content is not None:
        try:
            return str(parse_json(content.decode(), file.name)["id"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{file}: is damaged; restore it from a copy, or leave track.to empty"
            ) from None
    ident = uuid.uuid4().hex[:12]
    with writing(file):
        make_folder(folder)
    run.write(file.name, json.dumps({"id": ident}) + "\n")
    return ident


def of_round(line: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl as numbers by name.

    >>> of_round({"round": 0, "loss": 1.5, "phases": {"global": {"anna": {"mean": 1.5}}}})
    {'loss': 1.5, 'global/loss/anna': 1.5, 'global/loss': 1.5}
    """
    values: dict[str, float] = {
        name: value
        for name, value in line.items()
        if name != "round" and isinstance(value, (int, float))
    }
    for phase, by_client in line["phases"].items():
        losses = {client: own["mean"] for client, own in by_client.items()}
        values |= {f"{phase}/loss/{client}": loss for client, loss in losses.items()}
        if losses:
            values[f"{phase}/loss"] = sum(losses.values()) / len(losses)
    if line.get("seconds"):
        values["tokens_per_second"] = line["real_tokens"] / line["seconds"]
    return values


def of_evaluation(summary: Mapping[str, Any]) -> dict[str, float]:
    """P and TTP of eval/summary.json as numbers by name."""
    return {
        f"eval/{mode}/{metric}/{measure}": found[measure]["value"]
        for mode, by_metric in summary["modes"].items()
        for metric, found in by_metric.items()
        for measure in ("P", "TTP")
        if found[measure]["value"] is not None
    }
