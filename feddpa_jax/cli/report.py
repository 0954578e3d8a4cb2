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


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Writes the page."""
    from feddpa_jax.report.command import report

    report(known.runs, known.out)
