"""A comparison of weighting rules, read from the files in a run's folder `weigh`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from feddpa_jax.evaluate.interval import Estimate
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.laboratory.choosing import words
from feddpa_jax.report.scores import MEASURES, QUANTILES, finite, to_estimate

# By metric and measure.
Scores = Mapping[str, Mapping[str, Estimate]]
# What is interpolated for every rule.
RULE_METRICS = ("nll", "exact_match")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A weighting rule at its best setting, or a bound.

    Attributes:
      title: its short name.
      words: its setting.
      test: scores on the test instances, by interpolation.
      minus_paper: the same of the difference to the paper's rule.
      given_up: differences to two references; none in files of older versions.
      exact: scores of new answers, where it was run again; else none.
      weights: quantiles of the local weight, by "own" and "foreign".
      is_rival: whether it is set against the paper's rule: neither that nor a bound.
    """

    title: str
    words: str
    test: Scores
    minus_paper: Scores
    exact: Scores
    weights: Mapping[str, Sequence[float]]
    is_rival: bool = True
    given_up: Scores = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `feddpa weigh` wrote.

    Attributes:
      mix_weights: of the local adapter, at which answers were scored.
      curves: the mean score at each of them, by metric and by "own" and "foreign".
      rules: each at the setting that was best on held-out examples.
      interpolation_error: an estimate of the most that P and TTP are off, by metric.
      chosen_by: the metrics that the settings were chosen by.
      chosen_on: what they were chosen on, in words.
      references: what `given_up` of a rule is the difference to, by measure, in words.
      keeps: whether settings had to keep P (`--keep P`).
      drawn: which part of the federation was looked at, in words; empty for all of it.
      validation_instances: how many held-out examples there were.
      test_instances: how many test instances.
    """

    mix_weights: Sequence[float]
    curves: Mapping[str, Mapping[str, Sequence[Estimate]]]
    rules: Sequence[Rule]
    interpolation_error: Mapping[str, Mapping[str, float]]
    chosen_by: Sequence[str]
    chosen_on: str
    validation_instances: int
    test_instances: int
    references: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keeps: bool = False
    drawn: str = ""


def read_comparison(summary: Mapping[str, Any]) -> Comparison:
    """A comparison from the content of summary.json.

    Raises:
      LookupError, TypeError, ValueError, AttributeError: it is not as this version writes it.
    """
    weights = [finite(weight) for weight in summary["mix_weights"]]
    curves = {
        metric: {side: list(map(to_estimate, points)) for side, points in sides.items()}
        for metric, sides in summary["curves"].items()
    }
    if {len(points) for sides in curves.values() for points in sides.values()} - {len(weights)}:
        raise ValueError("a curve without a point for every weight")
    return Comparison(
        weights,
        {metric: curves[metric] for metric in RULE_METRICS if curves[metric]},
        [_rule(rule) for rule in summary["rules"]],
        {
            metric: {measure: finite(found[measure]) for measure in MEASURES}
            for metric, found in summary["interpolation_error"].items()
            if metric in METRICS
        },
        [name for name in summary["chosen_by"] if name in METRICS],
        # Earlier versions had one way, and one kind of stand-in.
        words(
            summary.get("chosen_on", "pooled"),
            summary.get("stand_ins", "prompts made up by the base"),
        ),
        int(summary["validation_instances"]),
        int(summary["test_instances"]),
        {measure: one["words"] for measure, one in (summary.get("references") or {}).items()},
        summary.get("keep") is not None,
        (summary.get("drawn") or {}).get("words", ""),
    )


def _rule(found: Mapping[str, Any]) -> Rule:
    weights = {
        side: list(map(finite, own)) for side, own in found["weights"].items() if own is not None
    }
    if any(len(own) != len(QUANTILES) for own in weights.values()):
        raise ValueError("weights without all quantiles")
    return Rule(
        title=_title(found.get("label") or "", found["name"]),
        words=found["words"] or "a bound, no rule",
        test=_scores(found["test"], RULE_METRICS),
        minus_paper=_scores(found["minus_paper"], RULE_METRICS),
        exact=_scores(found["exact"] or {}, ()),
        weights=weights,
        is_rival=not found.get("bound") and found.get("label") != "paper",
        given_up=_scores(found.get("given_up") or {}, ()),
    )


def _scores(found: Mapping[str, Any], needed: Sequence[str]) -> Scores:
    return {
        metric: {measure: to_estimate(found[metric][measure]) for measure in MEASURES}
        for metric in METRICS
        if metric in found or metric in needed
    }


def _title(label: str, name: str) -> str:
    return label if not label or name in label else f"{label} ({name})"
