"""feddpa plan."""

import argparse
import dataclasses
from collections.abc import Sequence

from feddpa_jax.cli.arguments import Parser, path
from feddpa_jax.cli.console import Reporter

HELP = (
    "Compile the round ahead of time, and print the memory, the FLOPs, what devices send each "
    "other, and how fast it could be."
)


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    parser.add_config()
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="a TPU slice, as v5p:4x4x4; this machine's devices if left out",
    )
    parser.add_argument(
        "--clients",
        type=int,
        metavar="N",
        help="number of clients, which use the configured clients' data in turn",
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="folder of plan.json")


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Compiles the round ahead of time, and prints what the compiler says."""
    from feddpa_jax.cli.plan_table import render
    from feddpa_jax.config import load_config
    from feddpa_jax.plan.ahead import Options, plan
    from feddpa_jax.run.opening import checked

    options = Options(known.topology, known.clients, known.out)
    config = load_config(known.config, overrides)
    if options.topology is not None and config.model.dtype == "auto":
        model = dataclasses.replace(config.model, dtype="bfloat16")
        config = dataclasses.replace(config, model=model)
    reporter.show(render(plan(checked(config), options)))
    if options.out is not None:
        reporter.say(f"everything: {options.out / 'plan.json'}")
