"""What weighting rules give up against the best constant mix and the global adapter."""

from feddpa_jax.evaluate.holm import holm_note
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.report.comparison import RULE_METRICS, Comparison
from feddpa_jax.report.result_tables import Column, Table, intervals_note, standing_columns
from feddpa_jax.report.scores import MEASURES


def given_up_table(label: str, comparison: Comparison) -> Table | None:
    """P and TTP of every rule minus those of two references; None if an older version found them.

    Args:
      label: of the run.
      comparison: what `feddpa weigh` found.
    """
    words = comparison.references
    rules = [rule for rule in comparison.rules if set(RULE_METRICS) <= rule.given_up.keys()]
    if not rules or set(words) != set(MEASURES):
        return None
    columns = [Column("rule", [rule.title for rule in rules])]
    for metric in RULE_METRICS:
        told = METRICS[metric]
        found = {m: [rule.given_up[metric][m] for rule in rules] for m in MEASURES}
        over = standing_columns(found, f"{told.title}: {{}} difference")
        for measure, own in found.items():
            heading = f"{told.title}: {measure} minus that of {words[measure]}"
            columns += [
                Column(heading, own, lambda value, told=told: told.cell(value, fine=True)),
                over[measure],
            ]
    shown = [one for rule in rules for own in rule.given_up.values() for one in own.values()]
    caption = [
        f"What rules give up on the test instances, {label}: P minus that of {words['P']}, the "
        f"constant mix that is best at P where settings are chosen; TTP minus that of "
        f"{words['TTP']}. A loss is above 0 in NLL, and below 0 in exact match.",
        intervals_note([one for one in shown if one.value]),
        f"In each metric, {holm_note(len(MEASURES) * len(rules))}",
    ]
    return Table(f"given_up_{label}", " ".join(caption), columns)
