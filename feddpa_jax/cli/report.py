"""feddpa report."""

import argparse
from collections.abc import Sequence

from feddpa_jax.cli.arguments import Parser, path
from feddpa_jax.cli.console import Reporter

HELP = "Write one page that shows a run, or compares several."


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("runs", nargs="+", type=path, metavar="R", help="folders of runs")
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help="the page, *.html")
    parser.add_argument(
        "--figures", type=path, metavar="DIR", help="write every figure as SVG and PDF here"
    )


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Writes the page, and says where everything is."""
    from feddpa_jax.report import write_report

    written = write_report(known.runs, known.out, figures=known.figures)
    for warning in written.warnings:
        reporter.say(warning)
    reporter.say(f"tables: {written.tables}; figures: {written.figures}")
    reporter.say(f"report: {written.page}")
