"""feddpa train."""

import argparse
from collections.abc import Sequence
from shlex import quote

from feddpa_jax.cli.arguments import Parser
from feddpa_jax.cli.console import Reporter
from feddpa_jax.cli.join import HEARTBEAT, WAIT

HELP = "Train a federation, or resume a run, and evaluate it at the end."


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    parser.add_config()
    parser.add_run_dir()
    parser.add_argument("--no-eval", action="store_true", help="do not evaluate at the end")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes, whose number and addresses JAX finds on TPU pods and SLURM",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0, outside TPU pods and SLURM, and a free port there",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="number of processes")
    parser.add_argument("--process", type=int, metavar="I", help="number of this process, from 0")
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT,
        metavar="SECONDS",
        help=f"stop if not all processes have started within this time ({WAIT:g})",
    )
    parser.add_argument(
        "--heartbeat",
        type=float,
        default=HEARTBEAT,
        metavar="SECONDS",
        help="a process that is silent for this time counts as lost, and the others stop "
        f"({HEARTBEAT:g})",
    )


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Trains, and evaluates at the end."""
    from feddpa_jax.cli.scores_table import show_scores
    from feddpa_jax.config import load_config
    from feddpa_jax.devices.processes import several
    from feddpa_jax.experiment import Experiment

    experiment = Experiment.from_config(
        load_config(known.config, overrides),
        run_dir=known.run_dir,
        evaluates=not known.no_eval,
        on_progress=reporter.on_progress,
    )
    if known.no_eval:
        experiment.train()
    else:
        scores = experiment.train_and_evaluate()
        if scores is not None:
            show_scores(scores, known.run_dir, reporter)
        elif several():
            place = quote(str(known.run_dir))
            reporter.say(f"now evaluate with one process: feddpa eval --run-dir {place}")
    reporter.say(f"run folder: {known.run_dir}")
