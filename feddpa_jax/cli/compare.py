"""feddpa compare."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from feddpa_jax.cli.arguments import Parser, folder
from feddpa_jax.cli.console import Reporter
from feddpa_jax.types import UserError

HELP = (
    "Train and evaluate methods on the same data and seeds, and write one table and one page. "
    "Rerun the command to resume, or to add methods and seeds."
)


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    parser.add_config()
    parser.add_argument(
        "--methods",
        required=True,
        metavar="LIST",
        help="methods, each with options and fields of its own if need be: "
        "'fedit,ditto(strength=0.5),feddpa_t(fed.local_weight=0.3)'",
    )
    parser.add_argument("--seeds", metavar="LIST", help="seeds, as 0,1,2 (the configuration's)")
    parser.add_argument(
        "--out",
        type=folder,
        default=Path("runs/compare"),
        metavar="DIR",
        help="where runs (DIR/METHOD/seed_N), table.csv and report.html go (runs/compare)",
    )
    parser.add_argument(
        "--against", metavar="METHOD", help="what the others are set against (the first method)"
    )
    parser.add_argument(
        "--equal",
        default="updates",
        metavar="updates|tokens",
        help="updates: each method as configured, with the same rounds; tokens: each with the "
        "rounds that train about as many tokens as the first method's (updates)",
    )
    parser.add_argument(
        "--modes",
        default="answer",
        metavar="answer|all",
        help="inference modes: the one that each method answers with, or all (answer)",
    )


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Compares, and says where everything is."""
    from feddpa_jax.cli.comparison_table import render
    from feddpa_jax.comparison.comparing import compare
    from feddpa_jax.config import load_config

    found = compare(
        load_config(known.config, overrides),
        known.methods,
        seeds=read_seeds(known.seeds),
        out=known.out,
        against=known.against,
        equal=known.equal,
        modes=known.modes,
        on_progress=reporter.on_progress,
    )
    reporter.show(render(found))
    written = found.write(known.out)
    for warning in written.warnings:
        reporter.say(warning)
    reporter.say(f"all numbers: {written.page.with_name('table.csv')}; tables: {written.tables}")
    reporter.say(f"report: {written.page}")


def read_seeds(text: str | None) -> list[int] | None:
    """The seeds of a list; None if none is given.

    Raises:
      UserError: it is no list of whole numbers.

    >>> read_seeds("0, 1,2")
    [0, 1, 2]
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        raise UserError(f"seeds: {text!r} is no list of whole numbers; write 0,1,2")
    return [int(part) for part in parts]
