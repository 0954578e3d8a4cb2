"""Writes the report of some runs."""

import re
from collections.abc import Sequence
from pathlib import Path

from feddpa_jax.progress import Reporter
from feddpa_jax.report.content import read_runs
from feddpa_jax.report.page import make_page
from feddpa_jax.runs import write_whole, writing
from feddpa_jax.types import UserError


def report(folders: Sequence[Path], out: Path, reporter: Reporter) -> None:
    """Writes one page, and its tables as CSV and LaTeX in a folder beside it.

    Args:
      folders: of runs.
      out: the page, `*.html`; the tables go to `*_tables/`.
      reporter: told where they are.

    Raises:
      UserError: a folder is no run, a file in it is damaged, or `out` cannot be written.
    """
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"--out: {out} is no page's name; name a file as report.html")
    page, tables = make_page(read_runs(folders))
    beside = out.with_name(f"{out.stem}_tables")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir(exist_ok=True)
        for table in tables:
            name = re.sub(r"[^\w.-]+", "_", table.name)
            write_whole(beside / f"{name}.csv", table.to_csv())
            write_whole(beside / f"{name}.tex", table.to_latex())
        write_whole(out, page)
    reporter.say(f"tables: {beside}")
    reporter.say(f"report: {out}")
