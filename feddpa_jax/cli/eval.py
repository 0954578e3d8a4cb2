"""feddpa eval."""

import argparse
from collections.abc import Sequence

from feddpa_jax.cli.arguments import Parser
from feddpa_jax.cli.console import Reporter

HELP = (
    "Evaluate a run: every client, task and mode. With --config: evaluate the PEFT folders "
    "that init.global_adapter and init.local_adapter name, into a new --run-dir."
)


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    parser.add_config()
    parser.add_run_dir()
    parser.add_step()
    parser.add_argument(
        "--rescore",
        action="store_true",
        help="make the tables again from the saved answers, without the model: today's intervals "
        "for an older evaluation, or another --eval.metrics that compares texts",
    )


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Evaluates a run's checkpoint; or with a configuration, the adapters that `init` names."""
    from feddpa_jax.cli.scores_table import show_scores
    from feddpa_jax.config import load_config
    from feddpa_jax.experiment import Experiment
    from feddpa_jax.run.rescoring import rescore
    from feddpa_jax.types import UserError

    if known.rescore:
        if known.config is not None or known.step != "last":
            other = "config" if known.config is not None else "step"
            raise UserError(f"{other}: says nothing about saved answers; leave it out, or rescore")
        show_scores(rescore(known.run_dir, overrides), known.run_dir, reporter)
        return
    if known.config is None:
        experiment = Experiment.open(
            known.run_dir, overrides, step=known.step, on_progress=reporter.on_progress
        )
    else:
        config = load_config(known.config, overrides)
        experiment = Experiment.from_adapters(
            config, known.run_dir, on_progress=reporter.on_progress
        )
    show_scores(experiment.evaluate(), known.run_dir, reporter)
