"""A page on disk; beside it its tables, and its figures."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from feddpa_jax.files.disk import clear_leftovers, make_folder, write_whole, writing
from feddpa_jax.files.lock import hold
from feddpa_jax.files.result_files import file_names
from feddpa_jax.report.content import read_runs
from feddpa_jax.report.page import Page, make_page
from feddpa_jax.report.plot_style import PAPER, to_pdf, to_svg
from feddpa_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Written:
    """A report on disk.

    Attributes:
      page: the file.
      tables: a folder with the tables.
      figures: a folder with the figures.
      warnings: results that could not be read, or that have no checksums.
    """

    page: Path
    tables: Path
    figures: Path
    warnings: tuple[str, ...] = ()


def write_page(runs: Sequence[Path], out: Path, figures: Path | None) -> Written:
    """Writes the page of some runs, as `feddpa_jax.report.write_report` says."""
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"out: {out} is no page's name; name a file as report.html")
    warnings: list[str] = []
    page = make_page(read_runs(runs, warnings.append))
    return write_made(page, out, figures, warnings)


def write_made(
    page: Page,
    out: Path,
    figures: Path | None,
    warnings: Sequence[str],
    *,
    beside: Mapping[str, str] = MappingProxyType({}),
) -> Written:
    """Writes a page, its tables, its figures, and other files beside it.

    Args:
      page: with its tables and drawings.
      out: the page's file.
      figures: a folder for the figures, for paper; None: as the page has them, beside it.
      warnings: what is known about it already.
      beside: more files, by name.

    Raises:
      UserError: something cannot be written, or another process writes there.
    """
    warnings = list(warnings)
    tables = out.with_name(f"{out.stem}_tables")
    plots = out.with_name(f"{out.stem}_figures") if figures is None else figures
    with hold(out, "wait for it, or name another --out", warnings.append):
        with writing(out):
            make_folder(out.parent)
            _write_tables(page, tables)
        with writing(plots):
            _write_figures(page, plots, for_paper=figures is not None)
        for name, content in beside.items():
            with writing(out.with_name(name)):
                write_whole(out.with_name(name), content)
        with writing(out):
            write_whole(out, page.html)
    return Written(out, tables, plots, tuple(warnings))


def _write_tables(page: Page, folder: Path) -> None:
    make_folder(folder)
    clear_leftovers(folder)
    names = file_names([table.name for table in page.tables])
    for table, name in zip(page.tables, names, strict=True):
        write_whole(folder / f"{name}.csv", table.to_csv())
        write_whole(folder / f"{name}.md", table.to_markdown())
        write_whole(folder / f"{name}.tex", table.to_latex())


def _write_figures(page: Page, folder: Path, *, for_paper: bool) -> None:
    make_folder(folder)
    clear_leftovers(folder)
    names = file_names([drawing.name for drawing in page.drawings])
    for drawing, svg, name in zip(page.drawings, page.svgs, names, strict=True):
        if for_paper:
            figure = drawing.make(min(PAPER, drawing.widths[0]))
            write_whole(folder / f"{name}.svg", to_svg(figure))
            write_whole(folder / f"{name}.pdf", to_pdf(figure))
        else:
            write_whole(folder / f"{name}.svg", svg)
