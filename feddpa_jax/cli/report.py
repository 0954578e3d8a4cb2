"""`feddpa report`: one page about some runs."""

from collections.abc import Sequence
from pathlib import Path

from feddpa_jax.progress import Reporter
from feddpa_jax.report import write_report


def report(
    folders: Sequence[Path], out: Path, reporter: Reporter, figures: Path | None = None
) -> None:
    """Writes the page and says where everything is.

    Raises:
      UserError: a folder is no run, a file in the only one is damaged, or `out` cannot be written.
    """
    written = write_report(folders, out, figures=figures)
    for warning in written.warnings:
        reporter.say(warning)
    reporter.say(f"tables: {written.tables}; figures: {written.figures}")
    reporter.say(f"report: {written.page}")
