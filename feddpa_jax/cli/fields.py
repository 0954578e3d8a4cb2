"""feddpa fields."""

import argparse
from collections.abc import Sequence

from feddpa_jax.cli.arguments import Parser
from feddpa_jax.cli.console import Reporter

HELP = "List every field of the configuration."


def add_arguments(parser: Parser) -> None:
    """There are none."""


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Prints every field of the configuration."""
    from rich.table import Table

    from feddpa_jax.config import describe_fields

    table = Table(box=None, pad_edge=False)
    table.add_column("field", no_wrap=True)
    for column in ("type", "default", "what it is"):
        table.add_column(column, overflow="fold")
    for row in describe_fields():
        table.add_row(*row)
    reporter.show(table)
