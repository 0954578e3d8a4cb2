"""feddpa data."""

import argparse
from collections.abc import Sequence
from shlex import quote

from feddpa_jax.cli.arguments import Parser, path
from feddpa_jax.cli.console import Reporter

HELP = "Check the configured data and print their statistics; or write the built-in sample."


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    parser.add_config()
    parser.add_argument("--make", type=path, metavar="DIR", help="write the sample data there")


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Writes the sample, or checks the configured data and prints their statistics."""
    from feddpa_jax.cli.data_table import render
    from feddpa_jax.config import load_config
    from feddpa_jax.data.sample import write_sample
    from feddpa_jax.data.statistics import describe
    from feddpa_jax.files.disk import writing
    from feddpa_jax.hf.load import load_base
    from feddpa_jax.run.inputs import encode, load_data
    from feddpa_jax.run.opening import checked

    config = checked(load_config(known.config, overrides))
    if known.make is not None:
        with writing(known.make):
            write_sample(known.make, config.seed)
        place = quote(str(known.make))
        reporter.say(f"sample data written to {known.make}; use --data.path {place}")
        return
    federation = load_data(config)
    base = load_base(config.model.path, config.model.dtype)
    statistics = describe(federation, lambda own: encode(config, base.tokenizer, own))
    reporter.show(render(statistics))
