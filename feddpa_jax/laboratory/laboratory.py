"""The result of a search for weighting rules: a value, rows of a table, a data frame."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from feddpa_jax.config import Config
from feddpa_jax.evaluate.interval import Estimate
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.laboratory.findings import SETTING, Finding, Summaries, told
from feddpa_jax.laboratory.given_up import References
from feddpa_jax.short_repr import short_repr
from feddpa_jax.weighting.settings import WeightingSettings

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass(frozen=True)
class Source:
    """Who was tested on what, in which run.

    Attributes:
      config: the run's.
      clients: their names; with `cells` those that were drawn.
      instances: digests of the test instances.
      tasks: of the instances, and which are each client's own.
    """

    config: Config
    clients: tuple[str, ...]
    instances: tuple[str, ...]
    tasks: Tasks


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """The result of a search for weighting rules.

    `experiment.evaluate(weighting=found.best_settings)` evaluates with the best rule.

    Attributes:
      findings: the fixed points, every rule at its best, and the bounds, with their scores.
      notes: remarks on them, in sentences.
      best: (label, settings) of every rule at its best, the best rule first.
      summary: the content of summary.json.
      settings_csv: every setting that was tried, with the scores that decide, as CSV.
      references: what `given_up` of a finding is the difference to.
      source: the run, its clients and the test instances.

    Example:
      ```
      found = run.laboratory(rules=[fd.rules.cosine, fd.rules.gate])
      found.to_pandas()
      run.evaluate(weighting=found.best_settings)
      ```
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    best: tuple[tuple[str, WeightingSettings], ...]
    summary: Mapping[str, Any]
    settings_csv: str
    references: References
    source: Source

    def __repr__(self) -> str:
        """In a few lines; see `short_repr`."""
        lines = [f"{one.candidate.label}: {_in_short(one.test)}" for one in self.findings]
        return short_repr(self, *lines, best=[label for label, _ in self.best])

    @property
    def best_settings(self) -> WeightingSettings:
        """The settings of the best rule."""
        return self.best[0][1]

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per finding, all with the same keys.

        These are `label`, `bound` (whether it knows what no client knows), the fields of its
        settings (None for bounds), and for "validation", "test" and "exact" (new forward passes;
        None where none were made) and each metric `test_nll_P`, the ends of its intervals, such as
        `test_nll_P_over_clients_low` (NaN where there is none), and the same of TTP. Likewise
        `given_up_nll_P` is the difference to the reference, and `minus_global_nll_P` that to the
        global adapter alone; `weight_own`, `weight_foreign` and `auc` say how weights tell own
        test instances from foreign ones.
        """
        metrics = {
            split: dict.fromkeys(
                name for finding in self.findings for name in getattr(finding, split) or ()
            )
            for split in ("validation", "test", "exact")
        }
        return [
            {
                "label": finding.candidate.label,
                "bound": finding.candidate.is_bound,
                **_fields(finding.candidate.settings),
                **{
                    key: value
                    for split, names in metrics.items()
                    for metric in names
                    for key, value in _scores(finding, split, metric).items()
                },
                **{
                    key: value
                    for metric, own in finding.given_up.items()
                    for measure, one in own.items()
                    for key, value in one.columns(f"given_up_{metric}_{measure}").items()
                },
                **{
                    key: value
                    for metric in finding.minus_global
                    for key, value in _scores(finding, "minus_global", metric).items()
                },
                **_separation(finding),
            }
            for finding in self.findings
        ]

    def to_pandas(self) -> "pandas.DataFrame":
        """The rows of `table` as a data frame."""
        import pandas

        return pandas.DataFrame(self.table)


def _in_short(summaries: Summaries) -> str:
    return ", ".join(
        f"{metric} P {own.p.value:.4g} TTP {own.ttp.value:.4g}" for metric, own in summaries.items()
    )


def _fields(settings: WeightingSettings | None) -> dict[str, Any]:
    return dict.fromkeys(SETTING) if settings is None else told(settings)


def _separation(finding: Finding) -> dict[str, float | None]:
    own, foreign, auc = finding.separation or (None, None, None)
    return {"weight_own": own, "weight_foreign": foreign, "auc": auc}


def _scores(finding: Finding, split: str, metric: str) -> dict[str, float | None]:
    """P and TTP with their intervals, by column."""
    summary = (getattr(finding, split) or {}).get(metric)
    found: dict[str, float | None] = {}
    for measure in ("P", "TTP"):
        estimate = Estimate.none(0.0, "") if summary is None else getattr(summary, measure.lower())
        own = estimate.columns(f"{split}_{metric}_{measure}")
        found |= dict.fromkeys(own) if summary is None else own
    return found
