"""Writes the report of some runs."""

import logging
from collections.abc import Sequence
from pathlib import Path

from feddpa_jax.files.disk import clear_leftovers, make_folder, write_whole, writing
from feddpa_jax.files.lock import hold
from feddpa_jax.files.results import file_names
from feddpa_jax.report.content import read_runs
from feddpa_jax.report.page import Parts, make_page
from feddpa_jax.report.style import FIGURE_STYLE
from feddpa_jax.report.svg import standalone
from feddpa_jax.types import UserError

_log = logging.getLogger(__name__)


def report(folders: Sequence[Path], out: Path) -> None:
    """Writes one page; beside it, its tables as CSV, Markdown and LaTeX and its plots as SVG.

    Args:
      folders: of runs.
      out: the page, `*.html`; the tables go to `*_tables/`, the plots to `*_figures/`.

    Raises:
      UserError: a folder is no run, a file in it is damaged, or `out` cannot be written.
    """
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"--out: {out} is no page's name; name a file as report.html")
    page, parts = _made(folders)
    tables, plots = (out.with_name(f"{out.stem}_{kind}") for kind in ("tables", "figures"))
    with hold(out, "wait for it, or name another --out", _log.warning), writing(out):
        make_folder(out.parent)
        for folder in (tables, plots):
            make_folder(folder)
            clear_leftovers(folder)
        names = file_names([table.name for table in parts.tables])
        for table, name in zip(parts.tables, names, strict=True):
            write_whole(tables / f"{name}.csv", table.to_csv())
            write_whole(tables / f"{name}.md", table.to_markdown())
            write_whole(tables / f"{name}.tex", table.to_latex())
        names = file_names(list(parts.figures))
        for svg, name in zip(parts.figures.values(), names, strict=True):
            write_whole(plots / f"{name}.svg", standalone(svg, FIGURE_STYLE))
        write_whole(out, page)
    _log.info(f"tables: {tables}; plots: {plots}")
    _log.info(f"report: {out}")


def _made(folders: Sequence[Path]) -> tuple[str, Parts]:
    """The page, and its parts."""
    try:
        return make_page(read_runs(folders, _log.warning))
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        named = ", ".join(map(str, folders))
        raise UserError(
            f"{named}: a result there is not as this version writes it ({type(error).__name__}: "
            f"{error}); make it again with feddpa eval or feddpa weigh"
        ) from None
