"""The results of an evaluation on the screen."""

from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from feddpa_jax.cli.console import Reporter
from feddpa_jax.evaluate.interval import LEGEND, missing_notes
from feddpa_jax.evaluate.metrics import METRICS, without_words_note
from feddpa_jax.evaluate.results import Evaluation, comparisons

# The row of what an answer scores that ignores the question.
MOST_COMMON = "most common answer"


def show_scores(found: Evaluation, run_dir: Path, reporter: Reporter) -> None:
    """Prints the tables of an evaluation, and where its answers are."""
    reporter.show(render(found))
    reporter.say(f"every answer and weight: {run_dir / 'eval' / 'instances.jsonl'}")


def render(found: Evaluation) -> Group:
    """The results as people read them: a table a metric, then the comparisons and the weights."""
    metrics = list(next(iter(found.summaries.values())))
    parts: list[Any] = []
    for name in metrics:
        told = METRICS.find(name)
        table = Table(title=f"{told.title} ({told.better} is better)", title_justify="left")
        table.add_column("mode")
        table.add_column("P: own task", justify="right")
        table.add_column("TTP: all tasks", justify="right")
        for mode, by_metric in found.summaries.items():
            answers = mode == found.settings.get("answers_with")
            table.add_row(
                f"{mode} *" if answers else mode,
                told.cell(by_metric[name].p),
                told.cell(by_metric[name].ttp),
            )
        if name in found.most_common:
            constant = found.most_common[name]
            table.add_row(MOST_COMMON, told.cell(constant.p), told.cell(constant.ttp))
        parts.append(table)
    lines = [f"{LEGEND} *: what this method answers with."]
    shown = [
        estimate
        for by_metric in (*found.summaries.values(), *found.differences.values())
        for summary in by_metric.values()
        for estimate in (summary.p, summary.ttp)
    ]
    lines += missing_notes(shown)
    for mode, other, measure in comparisons(found.settings.get("answers_with")):
        by_metric = found.differences.get(f"{mode} - {other}")
        if by_metric:
            values = "; ".join(
                f"{metric.title} {metric.cell(getattr(summary, measure))}"
                for name, summary in by_metric.items()
                for metric in [METRICS.find(name)]
            )
            lines.append(f"{measure.upper()}, {mode} minus {other}: {values}")
    judged = found.settings.get("answers_with")
    for name, gain in found.gains.get(str(judged), {}).items():
        told = METRICS.find(name)
        by_task = ", ".join(
            f"{task} {own.own - (own.most_common or 0.0):+.{told.digits}f}"
            for task, own in found.by_task(name, str(judged)).items()
            if own.own is not None
        )
        lines.append(
            f"{told.title}, {judged} minus the task's most common training answer: P "
            f"{told.cell(gain.p)}, TTP {told.cell(gain.ttp)}; own tasks: {by_task}"
        )
    note = without_words_note(found.settings.get("targets_without_words", 0))
    if note and "rouge1" in metrics:
        lines.append(note)
    if found.weights:
        weights = ", ".join(f"{name} tasks {w:.3f}" for name, w in found.weights.items())
        scales = found.settings["weighting"]["scales"]
        lines.append(f"mean local weight on {weights} (weighting.scales: {scales})")
    return Group(*parts, "\n".join(lines))
