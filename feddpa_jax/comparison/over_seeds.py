"""What weighting rules change over the global adapter, over runs that differ in their seed."""

from collections.abc import Sequence

from feddpa_jax.comparison.estimates import SeedsEstimate, estimate_seeds
from feddpa_jax.comparison.finished import Scores
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.laboratory.findings import Finding
from feddpa_jax.laboratory.laboratory import Laboratory
from feddpa_jax.types import UserError

# Sections of the configuration in which runs of one experiment are alike.
_ALIKE = ("model", "data", "lora", "fed")


def over_seeds(
    laboratories: Sequence[Laboratory], label: str | None = None
) -> dict[str, dict[str, SeedsEstimate]]:
    """The difference of each run's first choice, or of one rule, to the global adapter alone.

    Runs may choose different settings: what is estimated is then the way to choose. Scores are
    those of each finding's `test`, compared answer by answer within each run. Runs may have tested
    the same instances, which are paired then, or each its own; instances that only some runs have
    tested count as others.

    Args:
      laboratories: of runs that differ in their seed alone; one or more.
      label: a finding's, as "paper" or "best cosine"; None: the first choice of each run.

    Returns:
      By metric and measure, "P" and "TTP": the mean over runs of the score minus that of the
      global adapter, in nats a token (below 0 is better) or in % (above 0 is better), with its
      intervals over instances, clients, seeds and all (see `SeedsEstimate`).

    Raises:
      UserError: there is no run, one has no such finding, two have one seed, or their settings,
        clients or metrics differ.

    Example:
      ```
      runs = [fd.Experiment.open(f"runs/seed_{seed}") for seed in (0, 1, 2)]
      minus_global = fd.over_seeds([run.laboratory(exact=0) for run in runs])
      print(minus_global["nll"]["P"].text(3), minus_global["nll"]["P"].over_all.brackets(3))
      ```
    """
    if not laboratories:
        raise UserError("laboratories: names none; give one of each run")
    _check_alike(laboratories)
    findings = [_finding(one, label, number) for number, one in enumerate(laboratories)]
    metrics = findings[0].minus_global_CI.keys()
    for number, own in enumerate(findings):
        if own.minus_global_CI.keys() != metrics or not metrics:
            raise UserError(f"laboratories: run {number} has other metrics than run 0, or none")
    asked = [
        Scores(one.source.clients, one.source.instances, one.source.tasks, "", {})
        for one in laboratories
    ]
    return {
        metric: estimate_seeds(
            [own.minus_global_CI[metric] for own in findings],
            asked,
            span=METRICS.find(metric).span,
            paired=True,
        )
        for metric in metrics
    }


def _check_alike(laboratories: Sequence[Laboratory]) -> None:
    """Refuses runs that are not those of one experiment with several seeds."""
    first, numbers = laboratories[0].source, {}
    for number, own in enumerate(one.source for one in laboratories):
        other = numbers.setdefault(own.config.seed, number)
        if other != number:
            raise UserError(
                f"laboratories: runs {other} and {number} both have the seed {own.config.seed}; "
                "give each seed once"
            )
        for section in _ALIKE:
            if getattr(own.config, section) != getattr(first.config, section):
                raise UserError(
                    f"laboratories: run {number} has other settings in {section} than run 0; give "
                    "runs that differ in their seed alone"
                )
        if own.clients != first.clients:
            raise UserError(
                f"laboratories: run {number} looked at other clients than run 0; give `cells` "
                "(--cells) room for all clients"
            )


def _finding(found: Laboratory, label: str | None, number: int) -> Finding:
    """The finding of a label, or the first choice."""
    by_label = {own.candidate.label: own for own in found.findings}
    wanted = found.best[0][0] if label is None else label
    if wanted not in by_label:
        raise UserError(
            f"label: run {number} has no finding {wanted!r}; it has {', '.join(by_label)}"
        )
    return by_label[wanted]
