"""What the laboratory found, as summary.json, as a table of all settings, and on the screen."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.evaluate.estimating import Sample, Summary, estimate, summarize
from feddpa_jax.evaluate.interval import Estimate
from feddpa_jax.evaluate.metrics import METRICS, without_words, without_words_note
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.files.escape import csv_row
from feddpa_jax.laboratory.candidates import Candidate
from feddpa_jax.laboratory.collect import WEIGHTS, Collected
from feddpa_jax.laboratory.grid import CURVE_METRICS, interpolate, make_curves
from feddpa_jax.laboratory.separation import Separation
from feddpa_jax.weighting.rule import gives_weights
from feddpa_jax.weighting.settings import WeightingSettings

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# What a setting is told by, without what only the fixed mix needs, and what is the same for all.
SETTING = tuple(
    f.name
    for f in dataclasses.fields(WeightingSettings)
    if f.name not in ("fixed", "learn_from", "embed_weight")
)

Summaries = dict[str, Summary]
# What is given up against two references, by metric and measure (see `laboratory/given_up.py`).
GivenUp = Mapping[str, Mapping[str, Estimate]]


@dataclasses.dataclass(frozen=True)
class Split:
    """Instances of one kind.

    Attributes:
      rows: where they are among all instances.
      tasks: theirs.
    """

    rows: slice
    tasks: Tasks

    def own_cells(self) -> np.ndarray:
        """Whether an instance is of a client's own task."""
        return self.tasks.own_CK[:, self.tasks.task_I]


@dataclasses.dataclass(frozen=True)
class Finding:
    """A candidate's scores.

    Attributes:
      candidate: which.
      validation: by metric; interpolated, or run exactly if its rule lies on no curve.
      test: likewise.
      minus_paper: the same of the difference to the paper's rule, answer by answer.
      exact: by metric, from new forward passes and answers; None where none were made.
      given_up: differences of P and of TTP to references, by metric and measure.
      minus_global_CI: scores in `test` minus those of the global adapter alone, by metric, [C, I].
      minus_global: P and TTP of `minus_global_CI`.
      separation: how its weights tell own test instances from foreign ones.
    """

    candidate: Candidate
    validation: Summaries
    test: Summaries
    minus_paper: Summaries
    exact: Summaries | None = None
    given_up: GivenUp = dataclasses.field(default_factory=dict)
    minus_global_CI: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)
    minus_global: Summaries = dataclasses.field(default_factory=dict)
    separation: Separation | None = None


def interpolated(
    collected: Collected, split: Split, weight_CJ: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores [C, I] by metric at these weights of all instances."""
    score_CIWX, _ = make_curves(collected, split.tasks, split.rows)
    weight_CI = weight_CJ[:, split.rows].astype(np.float32)
    score_CIX = np.asarray(jax.vmap(interpolate)(jnp.asarray(score_CIWX), jnp.asarray(weight_CI)))
    return {name: score_CIX[..., x].astype(np.float64) for x, name in enumerate(CURVE_METRICS)}


def judge(
    collected: Collected, split: Split, weight_CJ: np.ndarray, minus_CJ: np.ndarray | None = None
) -> Summaries:
    """P and TTP with intervals, by metric; or those of the difference to other weights' scores."""
    scores = interpolated(collected, split, weight_CJ)
    if minus_CJ is not None:
        others = interpolated(collected, split, minus_CJ)
        scores = {name: scores[name] - others[name] for name in scores}
    return summarize_all(scores, split, paired=minus_CJ is not None)


def summarize_all(
    scores_CI: Mapping[str, np.ndarray], split: Split, *, paired: bool = False
) -> Summaries:
    """P and TTP with intervals, by metric; `paired` if the scores are differences."""
    return {
        name: summarize(own_CI, split.tasks, span=METRICS.find(name).span, paired=paired)
        for name, own_CI in scores_CI.items()
    }


def interpolation_error(collected: Collected, split: Split) -> dict[str, dict[str, float]]:
    """An estimate of the most that interpolation makes P and TTP of any rule be off, by metric.

    It is measured where interpolation is coarser than in use: every second weight is left out and
    interpolated between its neighbours, twice as far apart as the computed ones. Each answer counts
    with its largest deviation at any left-out weight, and none is set against another's. It is no
    bound of what lies between two computed weights, where an exact match may come and go.
    """
    score_CIWX, share_CIZ = make_curves(collected, split.tasks, split.rows)
    between_CIWX = (score_CIWX[:, :, :-2:2] + score_CIWX[:, :, 2::2]) / 2
    off_CIX = np.abs(between_CIWX - score_CIWX[:, :, 1::2]).max(axis=2)
    off_XZ = np.einsum("cix,ciz->xz", off_CIX, share_CIZ)
    return {
        name: dict(zip(("P", "TTP"), off_Z.tolist(), strict=True))
        for name, off_Z in zip(CURVE_METRICS, off_XZ, strict=True)
    }


def _summaries(found: Summaries) -> dict[str, Any]:
    return {name: {"P": s.p.to_json(), "TTP": s.ttp.to_json()} for name, s in found.items()}


def _curves(collected: Collected, split: Split) -> dict[str, Any]:
    """Mean scores at each of `WEIGHTS` on own and on foreign tasks, with intervals.

    Every task of a client counts the same, however many instances it has, as in P and TTP.
    """
    score_CIWX, _ = make_curves(collected, split.tasks, split.rows)
    own_CK = split.tasks.own_CK
    found: dict[str, Any] = {}
    for x, metric in enumerate(CURVE_METRICS):
        sides = found[metric] = {}
        for side, cells_CK in (("own", own_CK), ("foreign", ~own_CK)):
            if not cells_CK.any():
                continue
            share_CK = cells_CK / cells_CK.sum()
            sides[side] = [
                estimate(
                    [Sample([score_CIWX[:, :, w, x].astype(np.float64)], split.tasks)],
                    [share_CK],
                    span=METRICS[metric].span,
                ).to_json()
                for w in range(len(WEIGHTS))
            ]
    return found


def summary_of(
    collected: Collected,
    test: Split,
    findings: Sequence[Finding],
    *,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of summary.json."""
    own_CI = test.own_cells()

    def rule(finding: Finding) -> dict[str, Any]:
        candidate = finding.candidate
        weight_CI = candidate.weight_CJ[:, test.rows]
        setting = None if candidate.settings is None else told(candidate.settings)
        return {
            "name": candidate.label if setting is None else setting["rule"],
            "label": candidate.label,
            "bound": candidate.is_bound,
            "setting": setting,
            "words": describe(candidate.settings),
            "validation": _summaries(finding.validation),
            "test": _summaries(finding.test),
            "minus_paper": _summaries(finding.minus_paper),
            "minus_global": _summaries(finding.minus_global),
            "separation": finding.separation and finding.separation.to_json(),
            "given_up": {
                name: {measure: one.to_json() for measure, one in own.items()}
                for name, own in finding.given_up.items()
            },
            "exact": None if finding.exact is None else _summaries(finding.exact),
            "weights": {
                side: np.quantile(weight_CI[cells], QUANTILES).tolist() if cells.any() else None
                for side, cells in (("own", own_CI), ("foreign", ~own_CI))
            },
        }

    return {
        **about,
        "mix_weights": list(WEIGHTS),
        "weight_quantiles": list(QUANTILES),
        "curves": _curves(collected, test),
        "rules": [rule(finding) for finding in findings],
    }


def to_csv(
    settings: Sequence[WeightingSettings],
    score_NXZ: np.ndarray,
    headings: tuple[str, str] = ("P", "TTP"),
) -> str:
    """All settings with the scores that they are chosen by."""
    fields = [name for name in SETTING if name != "resample"]
    measures = [f"{metric} {z}" for metric in CURVE_METRICS for z in headings]
    lines = [csv_row([*fields, *measures])]
    for setting, score_XZ in zip(settings, score_NXZ, strict=True):
        own = told(setting)
        own["parameters"] = json.dumps(own["parameters"])
        row = ["" if own[name] is None else str(own[name]) for name in fields]
        lines.append(csv_row([*row, *(f"{value:.6f}" for value in score_XZ.reshape(-1))]))
    return "".join(lines)


def told(settings: WeightingSettings) -> dict[str, Any]:
    """A setting by field."""
    return {
        name: dict(settings.parameters) if name == "parameters" else getattr(settings, name)
        for name in SETTING
    }


def describe(settings: WeightingSettings | None) -> str:
    """A setting in a few words; what its rule does not see is left out."""
    if settings is None:
        return ""
    names = settings.sees()
    words = []
    if not gives_weights(settings.rule):
        words.append(f"{settings.scale:g} to {settings.scales}")
    if any(name.startswith("support") for name in names):
        words.append(f"support {settings.support}")
    if settings.rule != "constant" and any(name.endswith("D") for name in names):
        layer = "last layer" if settings.layer is None else f"layer {settings.layer}"
        words.append(f"{settings.embed_with}, {settings.pooling}, {layer}")
    words += [f"{name} {value}" for name, value in settings.parameters.items()]
    return ", ".join(words)


def flags(settings: WeightingSettings) -> str:
    """A setting as options of the command line."""
    values = {n: v for n, v in told(settings).items() if n not in ("seed", "resample")}
    values["parameters"] = json.dumps(values["parameters"])
    return " ".join(
        f"--weighting.{name} {'null' if value is None else shlex.quote(str(value))}"
        for name, value in values.items()
    )


def notes_on_rouge(findings: Sequence[Finding], targets: Sequence[str]) -> list[str]:
    """What ROUGE-1 is worth for these test targets, if a finding has it and some have no word."""
    told = any(finding.exact and "rouge1" in finding.exact for finding in findings)
    note = without_words_note(without_words(targets)) if told else ""
    return [note] if note else []
