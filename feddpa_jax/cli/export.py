"""feddpa export."""

import argparse
from collections.abc import Sequence

from feddpa_jax.cli.arguments import Parser, path
from feddpa_jax.cli.console import Reporter

HELP = "Write a run's adapters as PEFT folders, read them back and compare."


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    parser.add_run_dir()
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="new folder")
    parser.add_argument(
        "--mixed",
        type=float,
        metavar="W",
        help="also both adapters of every client, mixed at local weight W, as one adapter",
    )
    parser.add_argument(
        "--merged",
        metavar="global|NAME[:W]|FOLDER",
        help="also a full model with the global adapter, a client's local one, both at local "
        "weight W, or the adapter of another folder of clients/",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; compare the export in DIR with the run"
    )
    parser.add_step()


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Writes a run's adapters as PEFT folders; or compares such an export with the run."""
    from feddpa_jax.experiment import Experiment

    experiment = Experiment.open(known.run_dir, overrides, step=known.step)
    if known.check:
        experiment.check_export(known.out)
        reporter.say(f"{known.out}: every tensor equals the run's")
    else:
        experiment.export(known.out, mixed=known.mixed, merged=known.merged)
