"""From the lines of instances.jsonl back to scores, weights and texts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from feddpa_jax.evaluate.evaluation import Asked, ModeResult
from feddpa_jax.evaluate.metrics import METRICS, score_texts
from feddpa_jax.evaluate.modes import ModeWeights
from feddpa_jax.evaluate.results import digest
from feddpa_jax.types import Client, Example, UserError


def read_answers(
    lines: Iterable[Mapping[str, Any]],
    clients: Mapping[str, Client],
    tests: Iterable[Example],
    metrics: Sequence[str],
) -> tuple[dict[str, ModeResult], Asked]:
    """What an evaluation found, from the lines that it wrote.

    Args:
      lines: of instances.jsonl: every answer of every client in every mode.
      clients: by name; those that answered must be among them.
      tests: test instances; those that were answered must be among them.
      metrics: whose scores are wanted; of one that compares texts and was not scored, the saved
        texts are.

    Returns:
      Results by mode, and the clients and instances that they are of.

    Raises:
      LookupError, TypeError, ValueError: lines are missing, or of another form.
      UserError: a client or an instance is not among those given, or a metric has no saved score
        and cannot be computed from the saved texts.
    """
    by_mode: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for line in lines:
        by_client = by_mode.setdefault(line["mode"], {})
        by_client.setdefault(line["client"], {})[line["index"]] = line
    if not by_mode:
        raise ValueError("it has no answer")
    first = next(iter(by_mode.values()))
    names, asked = list(first), next(iter(first.values()))
    for mode, by_client in by_mode.items():
        for name in names:
            if sorted(by_client.get(name, ())) != list(range(len(asked))):
                raise ValueError(f"answers of {name} are missing in the mode {mode}")
    known = {digest(example): example for example in tests}
    missing = [f"client {name!r}" for name in names if name not in clients]
    missing += [f"test instance {i}" for i in asked if asked[i]["instance"] not in known]
    if missing:
        raise UserError(
            f"data.path: the data have no {missing[0]}, which the answers are of; name the data "
            "that the run was evaluated on"
        )
    for name in metrics:
        if not _can_score(name, asked[0]):
            raise UserError(
                f"eval.metrics: {name} was not scored, and needs the model or texts that were not "
                "saved; evaluate again"
            )
    instances = tuple(known[asked[i]["instance"]] for i in range(len(asked)))
    questions = Asked([clients[name] for name in names], instances)
    results = {
        mode: _result([[by_client[n][i] for i in range(len(asked))] for n in names], metrics)
        for mode, by_client in by_mode.items()
    }
    return results, questions


def saved_metrics(line: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics that an answer was scored by."""
    return tuple(line["scores"])


def _can_score(metric: str, line: Mapping[str, Any]) -> bool:
    """Whether a metric's score is saved with an answer, or can be computed from its text."""
    told = METRICS.find(metric)
    return metric in line["scores"] or (told.score is not None and line["prediction"] is not None)


def _result(lines_CI: list[list[Mapping[str, Any]]], metrics: Sequence[str]) -> ModeResult:
    """Of one mode, from the lines of each client."""

    def floats(name: str) -> np.ndarray:
        return np.array([[line[name] for line in own] for own in lines_CI], np.float32)

    first = lines_CI[0][0]
    similarity_CI = None if first["similarity"] is None else floats("similarity")
    if "local_weight_by_layer" in first:
        # A local weight and a global one are 1 together.
        local_CI = floats("local_weight_by_layer")
        global_CI = 1.0 - local_CI
    else:
        local_CI, global_CI = floats("local_weight"), floats("global_weight")
    texts_CI = None
    if first["prediction"] is not None:
        texts_CI = [[line["prediction"] for line in own] for own in lines_CI]
    return ModeResult(
        ModeWeights(global_CI, local_CI, similarity_CI),
        {name: _scores(name, lines_CI) for name in metrics},
        texts_CI,
    )


def _scores(metric: str, lines_CI: list[list[Mapping[str, Any]]]) -> np.ndarray:
    """A metric's scores [C, I]: the saved ones, or those of the saved texts."""
    if metric in lines_CI[0][0]["scores"]:
        return np.array([[line["scores"][metric] for line in own] for own in lines_CI])
    pairs = [(line["prediction"], line["target"]) for own in lines_CI for line in own]
    return np.reshape(score_texts(metric, pairs), (len(lines_CI), -1))
