"""Whether a run's folder holds the evaluation that a comparison needs."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from feddpa_jax.checked_settings import to_tree
from feddpa_jax.comparison.finished import Scores, read_scores
from feddpa_jax.config import Config
from feddpa_jax.evaluate.results import digest
from feddpa_jax.files.disk import to_json
from feddpa_jax.files.result_files import own_names, read_rules
from feddpa_jax.run.folder import EVALUATION, RunFolder, results_of
from feddpa_jax.run.history import parse_lines
from feddpa_jax.run.inputs import Prepared, encode
from feddpa_jax.types import UserError
from feddpa_jax.weighting.rule import RULES

_log = logging.getLogger(__name__)
# Fields of `eval` that touch no score that is wanted.
_FREE = ("modes", "metrics", "bootstrap", "batch_tokens")


def asked_instances(config: Config, prepared: Prepared) -> tuple[str, ...]:
    """The digests of the test instances that an evaluation asks."""
    test = prepared.federation.test
    kept = encode(config, prepared.base.tokenizer, test).kept
    return tuple(digest(test[i]) for i in kept)


def saved_scores(
    run: RunFolder,
    config: Config,
    *,
    last: int,
    every: bool,
    instances: Sequence[str],
) -> Scores | None:
    """The scores of a run's evaluation; None if there is none that serves.

    Args:
      run: its folder.
      config: with which it would be evaluated.
      last: the number of its last round.
      every: whether all modes are needed (those of `eval.modes`, if it is set); else the one that
        the method answers with.
      instances: digests of those that are to be asked.

    Returns:
      None as well for an evaluation of another round, of other instances or settings, or one that
      is damaged; the log says why.
    """
    try:
        summary = run.read_summary()
        if summary is None:
            return None
        why = _unfit(run, summary, config, last, every)
        if not why and read_rules(run.evaluation) != _own_rules_now(config, summary):
            why = "weighting.rule has changed"
        if not why:
            scores = _read(run, summary)
            if scores is None or scores.instances == tuple(instances):
                return scores
            why = "other test instances"
        _log.info(f"{run.evaluation}: evaluated again: {why}")
    except UserError as error:
        _log.info(f"evaluated again: {error}")
    return None


def _unfit(
    run: RunFolder, summary: Mapping[str, Any], config: Config, last: int, every: bool
) -> str:
    """What an evaluation differs in from the one that is needed; empty if it serves."""
    if results_of(run.path, EVALUATION).manifest is None:
        return "it has no checksums"  # As of one that was killed before it was whole.
    if summary.get("round") != last:
        return f"it is of round {summary.get('round')}, the last one is {last}"
    sections = {"eval": to_tree(config.eval), "weighting": to_tree(config.weighting)}
    wanted = json.loads(to_json(sections))
    there = {"eval": dict(summary["decoding"]), "weighting": summary["weighting"]}
    for name in _FREE:
        wanted["eval"].pop(name, None)
        there["eval"].pop(name, None)
    for section, fields in wanted.items():
        for name, value in fields.items():
            if there[section].get(name) != value:
                return f"{section}.{name} was {there[section].get(name)}, and is {value}"
    there_modes, wanted_modes = summary["decoding"].get("modes"), to_tree(config.eval)["modes"]
    if every and there_modes not in (None, wanted_modes):
        return f"it has the modes {', '.join(summary['modes'])} alone"
    if not every and summary["answers_with"] not in summary["modes"]:
        return f"without the mode {summary['answers_with']}"
    known = summary["modes"][next(iter(summary["modes"]))]
    if missing := [metric for metric in config.eval.metrics if metric not in known]:
        return f"without the metric {missing[0]}"
    return ""


def _own_rules_now(config: Config, summary: Mapping[str, Any]) -> dict[str, bytes]:
    if "instance" not in summary["modes"]:
        return {}
    files = RULES.sources([config.weighting.rule])
    names = own_names(list(files))
    return {f"{name}.py": text for name, text in zip(names, files.values(), strict=True)}


def _read(run: RunFolder, summary: Mapping[str, Any]) -> Scores | None:
    files = results_of(run.path, EVALUATION)
    content = files.read("instances.jsonl")
    if content is None:
        return None
    place = run.evaluation / "instances.jsonl"
    try:
        return read_scores(summary, parse_lines(place, content, files.remedy, cut=False))
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{place}: is damaged ({error})") from None
