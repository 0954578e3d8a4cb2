"""Tables of runs: as pandas data frames, and as CSV, Markdown and LaTeX."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from feddpa_jax.evaluate.holm import holm_note, standing
from feddpa_jax.evaluate.interval import KINDS, LEGEND, Estimate, missing_notes
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.files.escape import csv_text, latex, markdown
from feddpa_jax.report.comparison import RULE_METRICS, Comparison
from feddpa_jax.report.content import Run, differing, metrics_of
from feddpa_jax.report.paired import differences
from feddpa_jax.report.scores import MEASURES, MOST_COMMON

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      heading: at its top.
      values: texts, numbers or estimates; None for nothing.
      show: a value as text.
    """

    heading: str
    values: Sequence[Any]
    show: Callable[[Any], str] = str

    @property
    def is_words(self) -> bool:
        """Whether it holds words rather than numbers."""
        return any(isinstance(value, str) for value in self.values)

    def texts(self) -> list[str]:
        """The values as people read them."""
        return ["" if value is None else self.show(value) for value in self.values]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of values.

    Attributes:
      name: of its files.
      caption: what it shows.
      columns: of equal lengths.
      marked: rows that stand out.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    marked: frozenset[int] = frozenset()

    def headings(self) -> list[str]:
        """Of the columns."""
        return [column.heading for column in self.columns]

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of each row as text."""
        return list(zip(*(column.texts() for column in self.columns), strict=True))

    def to_frame(self) -> "pd.DataFrame":
        """The values; an estimate is seven columns, its value and the ends of each interval."""
        import pandas as pd

        parts: list[tuple[str, Sequence[Any]]] = []
        for column in self.columns:
            if not any(isinstance(value, Estimate) for value in column.values):
                parts.append((column.heading, column.values))
                continue
            found = [
                Estimate.none(float("nan"), "") if value is None else value
                for value in column.values
            ]
            parts.append((column.heading, [value.value for value in found]))
            for kind in KINDS:
                spans = [getattr(value, kind) for value in found]
                name = f"{column.heading}, {kind.replace('_', ' ')}"
                parts.append((f"{name}, low", [span.low for span in spans]))
                parts.append((f"{name}, high", [span.high for span in spans]))
        frame = pd.DataFrame({place: values for place, (_, values) in enumerate(parts)})
        return frame.set_axis([name for name, _ in parts], axis="columns")

    def to_csv(self) -> str:
        """The frame as comma-separated values; no text in it is a formula to a spreadsheet."""
        frame = self.to_frame()
        frame.columns = [csv_text(name) for name in frame.columns]
        safe = frame.map(lambda value: csv_text(value) if isinstance(value, str) else value)
        return safe.to_csv(index=False, lineterminator="\n")

    def to_markdown(self) -> str:
        """A pipe table."""

        def row(cells: Sequence[str]) -> str:
            return f"| {' | '.join(map(markdown, cells))} |"

        kinds = " | ".join("---" if column.is_words else "---:" for column in self.columns)
        lines = [row(self.headings()), f"| {kinds} |", *map(row, self.rows())]
        return "\n".join(lines) + "\n"

    def to_latex(self) -> str:
        """A `tabular` with booktabs' rules, in a `table` with its caption."""
        import pandas as pd

        cells = [[latex(cell) for cell in row] for row in self.rows()]
        frame = pd.DataFrame(cells, columns=[latex(name) for name in self.headings()])
        text = frame.style.hide(axis="index").to_latex(
            column_format="".join("l" if column.is_words else "r" for column in self.columns),
            hrules=True,
            caption=latex(self.caption),
            position_float="centering",
        )
        return f"% needs \\usepackage{{booktabs}}\n{text}"


def intervals_note(shown: Sequence[Estimate]) -> str:
    """What the brackets of a table are, and why some are missing."""
    return " ".join([LEGEND, *missing_notes(shown)])


class _Row(NamedTuple):
    run: str
    mode: str
    estimates: Mapping[str, Estimate]
    stands_out: bool


def score_table(runs: Sequence[Run], metric: str) -> Table:
    """P and TTP of every run and mode."""
    rows: list[_Row] = [
        _Row(
            run.label,
            run.evaluation.shown(mode),
            by_metric[metric].estimates,
            mode == run.evaluation.answers_with(),
        )
        for run in runs
        if run.evaluation is not None
        for mode, by_metric in run.evaluation.modes.items()
        if metric in by_metric
    ]
    rows += _most_common(runs, metric)
    told = metrics_of(runs)[metric]
    return Table(
        f"scores_{metric}",
        " ".join(
            [
                f"{told.heading} ({told.better} is better).",
                intervals_note([value for row in rows for value in row.estimates.values()]),
            ]
        ),
        [
            Column("run", [row.run for row in rows]),
            Column("mode", [row.mode for row in rows]),
            *(
                Column(heading, [row.estimates[measure] for row in rows], told.cell)
                for measure, heading in MEASURES.items()
            ),
        ],
        frozenset(place for place, row in enumerate(rows) if row.stands_out),
    )


def _most_common(runs: Sequence[Run], metric: str) -> list[_Row]:
    """A row of what the most common answers score; one alone, where it is the same for all runs."""
    found = [
        (run.label, run.evaluation.most_common[metric].estimates)
        for run in runs
        if run.evaluation is not None and metric in run.evaluation.most_common
    ]
    same = all(own == found[0][1] for _, own in found)
    if same and len(runs) > 1:
        found = [("–", own) for _, own in found[:1]]
    return [_Row(label, MOST_COMMON, own, False) for label, own in found]


def paired_table(runs: Sequence[Run]) -> tuple[Table | None, Sequence[Run]]:
    """What runs answer with, against the first run; and the runs that cannot be set against it."""
    rows, apart = [], []
    for run in runs[1:]:
        found = differences(run, runs[0])
        if found and run.evaluation is not None:
            rows.append((f"{run.label}, {run.evaluation.answers_with()}", found))
        else:
            apart.append(run)
    if not rows or runs[0].evaluation is None:
        return None, apart
    columns = [Column("run", [name for name, _ in rows])]
    shown: list[Estimate] = []
    for metric, told in metrics_of(runs).items():
        by_measure = {
            measure: [
                getattr(found[metric], measure.lower()) if metric in found else None
                for _, found in rows
            ]
            for measure in MEASURES
        }
        there = [value for own in by_measure.values() for value in own if value is not None]
        shown += there
        if there:
            over = standing_columns(by_measure, f"{told.title}: {{}}")
            for measure, own in by_measure.items():
                columns += [Column(f"{told.title}: {measure}", own, told.cell), over[measure]]
    caption = " ".join(
        [
            f"Minus {runs[0].label}, {runs[0].evaluation.answers_with()}: differences on the same "
            "test instances.",
            intervals_note(shown),
            f"In each metric, {holm_note(len(MEASURES) * len(rows))}",
        ]
    )
    return Table("differences_of_scores", caption, columns), apart


def standing_columns(
    by_measure: Mapping[str, Sequence[Estimate | None]], heading: str = "{}"
) -> dict[str, Column]:
    """What differences stand over, among all of these, by measure.

    Args:
      by_measure: differences of one metric, a row each; None for nothing.
      heading: of the differences' columns, with {} for the measure.
    """
    places = [(m, i) for m, own in by_measure.items() for i, value in enumerate(own) if value]
    differences = [value for own in by_measure.values() for value in own if value]
    over = dict(zip(places, standing(differences), strict=True))
    return {
        measure: Column(
            f"{heading.format(measure)} stands over",
            [over.get((measure, i)) for i in range(len(own))],
        )
        for measure, own in by_measure.items()
    }


def rule_table(label: str, comparison: Comparison) -> Table:
    """What `feddpa weigh` found: interpolated scores on the test, beside the exact ones."""
    rules = comparison.rules
    kinds = [
        ("", [rule.test for rule in rules], RULE_METRICS),
        (", minus the paper's", [rule.minus_paper for rule in rules], RULE_METRICS),
        (", run exactly", [rule.exact for rule in rules], (*RULE_METRICS, "rouge1")),
    ]
    short = {"nll": "NLL", "exact_match": "exact match", "rouge1": "ROUGE-1"}
    columns = [
        Column(
            f"{short[metric]}: {measure}{said}",
            [own[metric][measure] if metric in own else None for own in scores],
            lambda value, metric=metric: METRICS[metric].cell(value, fine=True),
        )
        for said, scores, metrics in kinds
        for metric in metrics
        for measure in MEASURES
    ]
    rivals = [rule for rule in rules if rule.is_rival]
    for metric in RULE_METRICS:
        own = {
            m: [rule.minus_paper[metric][m] if rule.is_rival else None for rule in rules]
            for m in MEASURES
        }
        columns += standing_columns(own, f"{short[metric]}: {{}}, minus the paper's,").values()
    shown = [
        value for rule in rivals for own in rule.minus_paper.values() for value in own.values()
    ]
    caption = [
        f"Weighting rules on the test instances, {label}; chosen on {comparison.chosen_on}.",
        intervals_note(shown),
        f"In each metric, {holm_note(len(MEASURES) * len(rivals))}",
    ]
    return Table(
        f"rules_{label}",
        " ".join(caption),
        [
            Column("rule", [rule.title for rule in rules]),
            Column("setting", [rule.words for rule in rules]),
            *columns,
        ],
        frozenset(place for place, rule in enumerate(rules) if rule.exact),
    )


def cost_table(runs: Sequence[Run]) -> Table:
    """Speed and communication."""
    real = [sum(done.real_tokens for done in run.rounds) for run in runs]
    computed = [sum(done.computed_tokens for done in run.rounds) for run in runs]
    seconds = [sum(done.seconds for done in run.rounds) for run in runs]
    share = [100 * a / b if b else None for a, b in zip(real, computed, strict=True)]
    speed = [a / b if b else None for a, b in zip(real, seconds, strict=True)]
    received = [sum(done.received for done in run.rounds) / 1e6 for run in runs]
    sent = [sum(done.sent for done in run.rounds) / 1e6 for run in runs]
    return Table(
        "training",
        "Training: work, speed, and what one client would exchange with the server in all",
        [
            Column("run", [run.label for run in runs]),
            Column("lines", [len(run.rounds) for run in runs]),
            Column("real tokens", real, "{:,}".format),
            Column("real, % of computed", share, "{:.0f}".format),
            Column("seconds", seconds, "{:,.0f}".format),
            Column("real tokens a second", speed, "{:,.0f}".format),
            Column("MB received a client", received, "{:.2f}".format),
            Column("MB sent a client", sent, "{:.2f}".format),
        ],
    )


def difference_table(runs: Sequence[Run]) -> Table:
    """The configuration's fields in which the runs differ."""
    names = differing(runs)
    columns = [Column(run.label, [_field(run.config.get(n)) for n in names]) for run in runs]
    title = "Where the configurations differ"
    return Table("differences", title, [Column("field", names), *columns])


def fields_table(name: str, caption: str, fields: Mapping[str, Any]) -> Table:
    """All fields of a configuration or an environment."""
    values = Column("value", list(map(_field, fields.values())))
    return Table(name, caption, [Column("field", list(fields)), values])


def _field(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_field, value))
    return "–" if value is None else str(value)
