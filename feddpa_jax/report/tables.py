"""A table as HTML, Markdown, CSV and LaTeX."""

import dataclasses
from collections.abc import Sequence

from feddpa_jax.files.escape import csv_row, html, latex, markdown


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      name: of its files.
      caption: what it shows.
      columns: their headings.
      rows: a cell for each column.
      words: how many of the first columns hold words; the others hold numbers.
      marked: rows that stand out.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    marked: frozenset[int] = frozenset()

    def to_html(self) -> str:
        """A scrolling table."""
        heads = "".join(
            f'<th scope="col"{self._kind(c)}>{html(name)}</th>'
            for c, name in enumerate(self.columns)
        )
        body = []
        for r, row in enumerate(self.rows):
            cells = "".join(
                f'<th scope="row">{html(cell)}</th>'
                if c == 0
                else f"<td{self._kind(c)}>{html(cell)}</td>"
                for c, cell in enumerate(row)
            )
            marked = ' class="marked"' if r in self.marked else ""
            body.append(f"<tr{marked}>{cells}</tr>")
        return (
            f'<div class="scroll" tabindex="0"><table><caption>{html(self.caption)}</caption>'
            f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        )

    def _kind(self, column: int) -> str:
        return "" if column < self.words else ' class="n"'

    def to_csv(self) -> str:
        """Comma-separated, with the headings first."""
        return "".join(csv_row(cells) for cells in (self.columns, *self.rows))

    def to_markdown(self) -> str:
        """A pipe table."""

        def row(cells: Sequence[str]) -> str:
            return f"| {' | '.join(map(markdown, cells))} |"

        kinds = ["---"] * self.words + ["---:"] * (len(self.columns) - self.words)
        lines = [row(self.columns), f"| {' | '.join(kinds)} |", *map(row, self.rows)]
        return "\n".join(lines) + "\n"

    def to_latex(self) -> str:
        """A `tabular` with booktabs' rules, in a `table` with its caption."""

        def row(cells: Sequence[str]) -> str:
            return " & ".join(latex(cell) for cell in cells) + r" \\"

        kinds = "l" * self.words + "r" * (len(self.columns) - self.words)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(self.caption)}}}",
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            row(self.columns),
            r"\midrule",
            *(row(cells) for cells in self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "% needs \\usepackage{booktabs}\n" + "\n".join(lines) + "\n"
