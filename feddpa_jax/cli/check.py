"""feddpa check."""

import argparse
from collections.abc import Sequence

from feddpa_jax.cli.arguments import Parser, folder
from feddpa_jax.cli.console import Reporter

HELP = (
    "Check a run before it starts: data, template, lengths, settings; all problems at once, and "
    "its tokens, bytes, memory and time."
)


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    parser.add_config()
    parser.add_argument(
        "--run-dir",
        type=folder,
        metavar="DIR",
        help="the folder that the run is meant for; if it has begun there, its pace is used",
    )


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Prints what a run would work on, and all that is wrong with it.

    Raises:
      UserError: something is wrong.
    """
    from feddpa_jax.cli.check_table import render
    from feddpa_jax.config import load_config
    from feddpa_jax.preflight.preflight import check
    from feddpa_jax.types import UserError

    wrong: list[str] = []
    config = load_config(known.config, overrides, problems=wrong)
    found = check(config, run_dir=known.run_dir)
    if found.example is not None:
        shown = found.example
        reporter.say(
            f"an example of {shown.client}, {shown.tokens} tokens; trained on are the "
            f"{shown.trained} in « »:"
        )
        reporter.answer(f"{shown.marked()}\n")
    reporter.show(render(found))
    problems = [*wrong, *(own for own in found.problems if own not in wrong)]
    if len(problems) == 1:
        raise UserError(problems[0])
    for number, problem in enumerate(problems, start=1):
        reporter.say(f"problem {number}: {problem}")
    if problems:
        raise UserError(f"{len(problems)} problems, of which the first: {problems[0]}")
    reporter.say("no problem found")
