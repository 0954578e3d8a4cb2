"""feddpa generate."""

import argparse
from collections.abc import Sequence

from feddpa_jax.cli.arguments import Parser
from feddpa_jax.cli.console import Reporter
from feddpa_jax.types import UserError

HELP = "Answer one prompt for one client of a run."


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    parser.add_run_dir()
    parser.add_argument("--client", required=True, metavar="NAME", help="whose adapters answer")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the instruction")
    parser.add_argument("--input", default="", metavar="TEXT", help="its context, if any")
    parser.add_argument(
        "--mode",
        metavar="MODE",
        help="base, global, local, fixed, instance, or one of the method's own; if left out, what "
        "the method answers with",
    )
    parser.add_step()


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Prints the answer, and the weights that were used."""
    if not known.prompt.strip():
        raise UserError("--prompt: is empty")
    import numpy as np

    from feddpa_jax.adapters.dual import MODES
    from feddpa_jax.experiment import Experiment

    experiment = Experiment.open(
        known.run_dir, overrides, step=known.step, only=known.client, mode=known.mode
    )
    answer = experiment.generate(known.client, known.prompt, input=known.input, mode=known.mode)
    g, l, similarity = (
        answer.weight.global_weight,
        answer.weight.local_weight,
        answer.weight.similarity,
    )
    seen = "" if similarity is None else f", similarity {similarity:.4f}"
    mean = " (means over layers)" if np.ndim(l) else ""
    weights = f"global weight {np.mean(g):.4f}, local weight {np.mean(l):.4f}{mean}"
    if answer.mode not in MODES:
        weights = "the method's own adapter of this mode"
    reporter.say(f"{known.client}, {answer.mode}: {weights}{seen}")
    reporter.answer(answer.text)
