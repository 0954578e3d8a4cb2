"""What rules gain on the global adapter, over runs that differ in their seed."""

from collections.abc import Sequence

from feddpa_jax.comparison.estimates import SeedsEstimate, estimate_seeds
from feddpa_jax.comparison.finished import Scores
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.evaluate.results import digest
from feddpa_jax.laboratory.findings import Finding
from feddpa_jax.laboratory.laboratory import Laboratory
from feddpa_jax.types import UserError


def over_seeds(
    found: Sequence[Laboratory], label: str | None = None
) -> dict[str, dict[str, SeedsEstimate]]:
    """The mean gain of each run's first choice, or of one rule, on the global adapter alone.

    Runs may choose different settings: what is estimated is the way to choose. Scores are
    interpolated, as `test` of a finding, and compared answer by answer within each run. Runs may
    have tested the same instances, or each its own.

    Args:
      found: of runs that differ in their seed alone; one or more.
      label: a finding's, as "paper" or "best cosine"; None: the first choice of each run.

    Returns:
      By metric and measure, "P" and "TTP": the mean over runs of the score minus that of the
      global adapter, in nats a token or %, with its intervals over instances, clients, seeds and
      all (see `SeedsEstimate`).

    Raises:
      UserError: there is no run, or one has no such finding.

    Example:
      ```
      runs = [fd.Experiment.open(f"runs/seed_{seed}") for seed in (0, 1, 2)]
      gain = fd.over_seeds([run.laboratory(exact=0) for run in runs])
      print(gain["nll"]["P"].text(3), gain["nll"]["P"].over_all.brackets(3))
      ```
    """
    if not found:
        raise UserError("found: names no laboratory; give one of each run")
    of_runs = [_finding(one, label, number) for number, one in enumerate(found)]
    asked = [
        Scores(one.asked.names, tuple(map(digest, one.asked.instances)), one.asked.tasks(), "", {})
        for one in found
    ]
    return {
        metric: estimate_seeds(
            [own.gain_CI[metric] for own in of_runs],
            asked,
            span=METRICS.find(metric).span,
            paired=True,
        )
        for metric in of_runs[0].gain_CI
    }


def _finding(found: Laboratory, label: str | None, number: int) -> Finding:
    """The finding of a label, or the first choice."""
    by_label = {own.candidate.label: own for own in found.findings}
    wanted = found.best[0][0] if label is None else label
    if wanted not in by_label:
        raise UserError(
            f"label: run {number} has no finding {wanted!r}; it has {', '.join(by_label)}"
        )
    return by_label[wanted]
