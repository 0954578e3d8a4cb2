"""What a comparison of methods found."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feddpa_jax.comparison.estimates import MEASURES, SeedsEstimate, estimate_seeds
from feddpa_jax.comparison.finished import FinishedRun
from feddpa_jax.evaluate.holm import holm_note
from feddpa_jax.evaluate.interval import LEGEND, Estimate, missing_notes
from feddpa_jax.evaluate.metrics import METRICS, in_order
from feddpa_jax.short_repr import short_repr

if TYPE_CHECKING:
    import pandas

    from feddpa_jax.report.page_files import Written

# By metric and measure.
Estimates = Mapping[str, Mapping[str, SeedsEstimate]]


@dataclasses.dataclass(frozen=True)
class Row:
    """A method in one of its inference modes.

    Attributes:
      method: its label.
      mode: the mode.
      answers: whether the method answers with it.
      scores: by metric, and by "P" and "TTP".
      minus: the same of the paired difference to what the other method answers with; empty for
        that itself.
    """

    method: str
    mode: str
    answers: bool
    scores: Estimates
    minus: Estimates


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run of a method took: means over its seeds.

    Attributes:
      method: its label.
      rounds: communication rounds, without a personalization after the last.
      updates: of the optimizer, over all clients and phases.
      tokens: of examples that were trained on, likewise; no padding.
      seconds: of training, on this machine.
      bytes_received: by a client that takes part in every round, in all.
      bytes_sent: likewise.
      tokens_off: tokens over those of the first method, minus 1.
      updates_off: the same of updates.
    """

    method: str
    rounds: float
    updates: float
    tokens: float
    seconds: float
    bytes_received: float
    bytes_sent: float
    tokens_off: float = 0.0
    updates_off: float = 0.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    r"""Methods on the same base, data and seeds; `fd.compare` makes it.

    Attributes:
      runs: every run, by seed and then by method.
      against: the label of the method that the others are set against.
      equal: what was kept equal, "updates" or "tokens".

    Example:
      ```
      found = fd.compare(config, "fedit,feddpa_t", seeds=[0, 1, 2])
      print(found["nll"]["feddpa_t"]["P"].over_seeds, *found.notes, sep="\n")
      found.write("runs/three")
      ```
    """

    runs: tuple[FinishedRun, ...]
    against: str
    equal: str = "updates"

    def __repr__(self) -> str:
        """In a few lines; see `short_repr`."""
        lines = [_line(metric, self[metric]) for metric in self.metrics]
        return short_repr(self, *lines, methods=self.methods, seeds=self.seeds)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods' labels, in the order in which they were named."""
        return tuple(dict.fromkeys(run.contender.label for run in self.runs))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(dict.fromkeys(run.seed for run in self.runs))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics, in the order in which they are shown."""
        return tuple(in_order(self.runs[0].config.eval.metrics))

    def of(self, method: str) -> tuple[FinishedRun, ...]:
        """A method's runs, by seed."""
        return tuple(run for run in self.runs if run.contender.label == method)

    def __getitem__(self, metric: str) -> dict[str, Mapping[str, SeedsEstimate]]:
        """By method, "P" and "TTP" of what it answers with.

        Raises:
          KeyError: the metric was not evaluated.
        """
        if metric not in self.metrics:
            raise KeyError(f"{metric!r} was not evaluated; there are {', '.join(self.metrics)}")
        return {row.method: row.scores[metric] for row in self.rows if row.answers}

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every method and mode, with estimates and paired differences."""
        other = self.of(self.against)
        rows = []
        for method in self.methods:
            runs = self.of(method)
            for mode in _modes(runs):
                answers = mode == runs[0].scores.answers_with
                itself = answers and method == self.against
                rows.append(
                    Row(
                        method,
                        mode,
                        answers,
                        {m: _scores(runs, mode, m) for m in self.metrics},
                        {} if itself else {m: _minus(runs, mode, other, m) for m in self.metrics},
                    )
                )
        return tuple(rows)

    def most_common(self, metric: str) -> Mapping[str, Estimate] | None:
        """What each task's most common training answer scores, by "P" and "TTP".

        None by a metric that does not compare texts. Where seeds differ in their data, a mean over
        them, without an interval.
        """
        found = [run.scores.most_common.get(metric) for run in self.runs]
        there = [own for own in found if own is not None]
        if len(there) < len(found):
            return None
        if all(own == there[0] for own in there):
            return there[0]
        return {
            measure: Estimate.none(
                float(np.mean([own[measure].value for own in there])), "seeds have other data"
            )
            for measure in MEASURES
        }

    @functools.cached_property
    def costs(self) -> tuple[Cost, ...]:
        """What a run of each method took."""
        costs = [_cost(method, self.of(method)) for method in self.methods]
        first = costs[0]
        return tuple(
            dataclasses.replace(
                cost,
                tokens_off=cost.tokens / first.tokens - 1,
                updates_off=cost.updates / first.updates - 1,
            )
            for cost in costs
        )

    @property
    def same_instances(self) -> bool:
        """Whether all seeds are tested on the same instances."""
        return len({run.scores.questions for run in self.runs}) == 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What the intervals are, and what was kept equal; a sentence or a few each."""
        return tuple(_notes(self))

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per metric, method and mode: P, TTP, differences, intervals, costs.

        Columns such as `P_over_clients_low` are the ends of intervals, and those of `P_minus` the
        ends of the difference's to the method in `against`; NaN where there is no interval.
        """
        import pandas

        costs = {cost.method: dataclasses.asdict(cost) for cost in self.costs}
        for own in costs.values():
            del own["method"]
        return pandas.DataFrame(
            [
                {
                    "metric": metric,
                    "method": row.method,
                    "mode": row.mode,
                    "answers": row.answers,
                    "seeds": len(self.seeds),
                    "against": self.against,
                    **_columns(row.scores.get(metric, {}), ""),
                    **_columns(row.minus.get(metric, {}), "_minus"),
                    **costs[row.method],
                }
                for metric in self.metrics
                for row in self.rows
            ]
        )

    def write(self, out: Path | str) -> "Written":
        """Writes report.html, its tables and figures, and table.csv.

        Args:
          out: the folder; that of the runs, if they have one, or any other.

        Raises:
          UserError: something cannot be written.
        """
        from feddpa_jax.comparison.comparison_page import write_comparison
        from feddpa_jax.files.bucket import folder_at

        return write_comparison(self, folder_at(out))


def _line(metric: str, scores: Mapping[str, Mapping[str, SeedsEstimate]]) -> str:
    own = (f"{name} P {e['P'].value:.4g} TTP {e['TTP'].value:.4g}" for name, e in scores.items())
    return f"{metric}: {', '.join(own)}"


def _modes(runs: Sequence[FinishedRun]) -> list[str]:
    """The modes that all seeds were evaluated in; what the method answers with comes first."""
    first = runs[0].scores
    known = [mode for mode in first.by_mode if all(mode in run.scores.by_mode for run in runs)]
    return sorted(known, key=lambda mode: mode != first.answers_with)


def _scores(runs: Sequence[FinishedRun], mode: str, metric: str) -> Mapping[str, SeedsEstimate]:
    return estimate_seeds(
        [run.scores.by_mode[mode][metric] for run in runs],
        [run.scores for run in runs],
        span=METRICS.find(metric).span,
    )


def _minus(
    runs: Sequence[FinishedRun],
    mode: str,
    others: Sequence[FinishedRun],
    metric: str,
) -> Mapping[str, SeedsEstimate]:
    """The difference to what the others answer with, seed by seed and answer by answer."""
    pairs = list(zip(runs, others, strict=True))
    assert all(run.scores.questions == other.scores.questions for run, other in pairs)
    return estimate_seeds(
        [run.scores.by_mode[mode][metric] - other.scores.answered[metric] for run, other in pairs],
        [run.scores for run in runs],
        span=METRICS.find(metric).span,
        paired=True,
    )


def _cost(method: str, runs: Sequence[FinishedRun]) -> Cost:
    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    return Cost(
        method,
        rounds=mean([run.work.rounds for run in runs]),
        updates=mean([run.updates for run in runs]),
        tokens=mean([run.total("real_tokens") for run in runs]),
        seconds=mean([run.total("seconds") for run in runs]),
        bytes_received=mean([run.total("client_bytes_received") for run in runs]),
        bytes_sent=mean([run.total("client_bytes_sent") for run in runs]),
    )


def _columns(found: Mapping[str, SeedsEstimate], end: str) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for measure in MEASURES:
        one, name = found.get(measure), f"{measure}{end}"
        columns |= (one or Estimate.none(math.nan, "")).columns(name)
        span = None if one is None else one.over_seeds
        columns[f"{name}_over_seeds_low"] = None if span is None else span.low
        columns[f"{name}_over_seeds_high"] = None if span is None else span.high
    return columns


def _notes(found: Comparison) -> list[str]:
    count = len(found.seeds)
    listed = ", ".join(map(str, found.seeds))
    shared = (
        "The instances are the same for all seeds and methods."
        if found.same_instances
        else "The test instances depend on the seed; all methods of a seed are tested on the same "
        "ones."
    )
    notes = [f"Values of seed {listed}. {LEGEND} All methods are tested on the same instances."]
    if count > 1:
        notes = [f"Values: mean over {count} seeds ({listed}). {LEGEND} {shared}"]
    shown = [
        value
        for row in found.rows
        for part in (row.scores, row.minus)
        for by_measure in part.values()
        for value in by_measure.values()
    ]
    notes += missing_notes(shown)
    if count > 1:
        fixed = "fixed" if found.same_instances else "as the seed has them"
        notes.append(
            f"±: half of the 95 % t-interval over the {count} seeds (degrees of freedom: "
            f"{count - 1}), clients fixed, instances {fixed}."
        )
    else:
        notes.append("One seed: there is no interval over seeds; name several.")
    notes.append(
        f"Minus {found.against}: difference to what it answers with, paired by seed, client and "
        "test instance; intervals as above, of the difference. *: what a method answers with."
    )
    if minus := [row for row in found.rows if row.minus]:
        notes.append(f"In each metric’s differences, {holm_note(len(MEASURES) * len(minus))}")
    if found.equal == "tokens":
        notes.append(
            f"Equal tokens: each method has the number of rounds whose trained tokens come nearest "
            f"to those of {found.methods[0]}; the last columns say by how much they miss."
        )
    else:
        notes.append(
            "Equal updates: each method as configured, with the same rounds, epochs and batch size "
            "in each phase. A method of more phases makes more updates; the last columns say how "
            f"many more than {found.methods[0]}."
        )
    notes.append(
        "Tokens are those of examples, without padding; seconds are of training, on the machine "
        "that trained; bytes are those of a client that takes part in every round."
    )
    return notes
