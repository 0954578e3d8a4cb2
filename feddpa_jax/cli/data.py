"""feddpa data."""

import argparse
from collections.abc import Sequence
from shlex import quote
from typing import TYPE_CHECKING

from feddpa_jax.cli.arguments import Parser, path
from feddpa_jax.cli.console import Reporter
from feddpa_jax.types import UserError

if TYPE_CHECKING:
    from feddpa_jax.config import Config

HELP = (
    "Check the configured data and print their statistics; or divide a flat file among clients; or "
    "write the built-in sample."
)


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    parser.add_config()
    parser.add_argument("--make", type=path, metavar="DIR", help="write the sample data there")
    parser.add_argument(
        "--every-client",
        action="store_true",
        help="print a line for every client, where there are more than 40",
    )
    parser.add_argument(
        "--partition",
        metavar="HOW",
        help="divide the flat file that --data.path names (JSON lines, CSV or Parquet): iid, "
        "'dirichlet(COLUMN, alpha=0.1)', 'pathological(COLUMN, k=2)', 'natural(COLUMN)', or "
        "FILE.py:NAME of your own",
    )
    parser.add_argument("--clients", type=int, metavar="N", help="number of clients")
    parser.add_argument(
        "--minimum", type=int, metavar="N", help="fewest training examples of a client (1)"
    )
    parser.add_argument(
        "--test", type=float, metavar="PART", help="part of each client's examples for tests (0)"
    )
    parser.add_argument("--label", metavar="COLUMN", help="column that is counted and drawn")
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="new folder for the divided data and a picture"
    )


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Writes the sample, divides a file, or checks the data and prints their statistics."""
    from feddpa_jax.cli.data_table import render
    from feddpa_jax.config import load_config
    from feddpa_jax.data.sample import write_sample
    from feddpa_jax.data.statistics import describe
    from feddpa_jax.files.disk import writing
    from feddpa_jax.hf.load import load_base
    from feddpa_jax.run.inputs import encode, load_data
    from feddpa_jax.run.opening import checked

    config = checked(load_config(known.config, overrides))
    if known.partition is not None:
        _divide(known, config, reporter)
        return
    for name in ("clients", "minimum", "test", "label", "out"):
        if getattr(known, name) is not None:
            raise UserError(f"{name}: is for --partition; name a partition too, or leave it out")
    if known.make is not None:
        with writing(known.make):
            write_sample(known.make, config.seed)
        place = quote(str(known.make))
        reporter.say(f"sample data written to {known.make}; use --data.path {place}")
        return
    federation = load_data(config)
    # Its tokenizer is all that is wanted.
    base = load_base(config.model.path, config.model.dtype, weights=False)
    statistics = describe(federation, lambda own: encode(config, base.tokenizer, own))
    reporter.show(render(statistics, every=known.every_client))


def _divide(known: argparse.Namespace, config: "Config", reporter: Reporter) -> None:
    """Divides a flat file among clients, prints what came of it, and writes it."""
    from feddpa_jax.cli.partition_table import render_partition
    from feddpa_jax.partitioning.partition import partition
    from feddpa_jax.partitioning.partition_folder import check_folder
    from feddpa_jax.partitioning.partitioner import PARTITIONERS

    if known.make is not None:
        raise UserError("make: writes the sample; leave it or --partition out")
    if known.every_client:
        raise UserError("every_client: is for statistics of clients; leave it or --partition out")
    if known.out is not None:
        check_folder(known.out)
    file = PARTITIONERS.own_file(known.partition.partition("(")[0].strip())
    if file is not None and file.is_file():
        reporter.say(f"partition: running the code in {file}")
    found = partition(
        config.data.path,
        known.partition,
        clients=known.clients,
        minimum=1 if known.minimum is None else known.minimum,
        test=0.0 if known.test is None else known.test,
        seed=config.seed,
        label=known.label,
        columns=config.data.columns,
    )
    reporter.show(render_partition(str(found.settings["partition"]), found.statistics))
    if known.out is None:
        reporter.say("nothing is written; name a folder with --out DIR")
        return
    place = found.write(known.out)
    reporter.say(f"clients: {known.out / 'clients.svg'}")
    named = ", ".join(f"{ours}: {theirs}" for ours, theirs in config.data.columns.items())
    columns = f" --data.columns {quote(f'{{{named}}}')}" if named else ""
    reporter.say(f"written to {known.out}; use --data.path {quote(place)}{columns}")
