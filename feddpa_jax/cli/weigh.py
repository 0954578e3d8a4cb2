"""feddpa weigh."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from feddpa_jax.cli.arguments import Parser
from feddpa_jax.cli.console import Reporter

HELP = (
    "Try weighting rules on a run: evidence is computed once, thousands of settings are scored "
    "on held-out examples, the best of every rule on the test instances."
)


def add_arguments(parser: Parser) -> None:
    """Adds the command's arguments."""
    parser.add_run_dir()
    parser.add_argument(
        "--rules", metavar="LIST", help="names, or FILE.py:NAME (all registered ones)"
    )
    parser.add_argument(
        "--parameters",
        metavar="YAML",
        help="values of hyperparameters to try, as 'gate: {ridge: [0.01, 0.1]}' (the rules' own)",
    )
    parser.add_argument(
        "--scales", metavar="LIST", help="factors of the similarities (0.25,0.5,0.75,1,1.5)"
    )
    parser.add_argument(
        "--supports",
        metavar="LIST",
        help="numbers of training prompts per client (the run's, and all)",
    )
    parser.add_argument(
        "--layers",
        metavar="LIST",
        help="numbers of layers after which prompts are embedded (each quarter of the model)",
    )
    parser.add_argument(
        "--embed-with",
        metavar="LIST",
        help="adapters under which prompts are embedded: local, global, base, mixed (all of them)",
    )
    _add_choosing(parser)
    parser.add_argument("--fresh", action="store_true", help="compute the evidence again")
    parser.add_step()


def _add_choosing(parser: Parser) -> None:
    """Adds the arguments of how settings are chosen."""
    parser.add_argument(
        "--by",
        default="nll",
        metavar="LIST",
        help="metric that settings are chosen by: nll, exact_match, or ranks in both (nll)",
    )
    parser.add_argument(
        "--choose",
        default="client",
        metavar="client|pooled",
        help="what settings are chosen on: what each client can know, or all clients' held-out "
        "examples together, which no federation has (client)",
    )
    parser.add_argument(
        "--foreign",
        default="sample",
        metavar="sample|base|FILE",
        help="with --choose client, what stands for foreign prompts: the built-in sample's, those "
        "that the base makes up, or a file of public examples, whose answers are not read (sample)",
    )
    parser.add_argument(
        "--keep",
        metavar="P",
        help="choose the best TTP among settings that lose nothing on P beyond its 95 %% interval "
        "over instances (the best mean of both)",
    )
    parser.add_argument(
        "--exact",
        type=int,
        default=2,
        metavar="N",
        help="the best N rules and the paper's are run again, with answers (2; 0: none)",
    )
    parser.add_argument(
        "--cells",
        type=int,
        default=32_768,
        metavar="N",
        help="look at no more than N pairs of a client and an instance, drawn at random (32768)",
    )


def run(known: argparse.Namespace, overrides: Sequence[str], reporter: Reporter) -> None:
    """Tries weighting rules on a run's checkpoint."""
    from feddpa_jax.cli.findings_table import render
    from feddpa_jax.experiment import Experiment

    options = read_options(known)
    experiment = Experiment.open(
        known.run_dir, overrides, step=known.step, on_progress=reporter.on_progress
    )
    found = experiment.laboratory(**options)
    reporter.show(render(found.findings, found.notes, found.references))
    folder = known.run_dir / "weigh"
    reporter.say(f"findings: {folder / 'summary.json'}; all settings: {folder / 'settings.csv'}")


def read_options(known: argparse.Namespace) -> dict[str, Any]:
    """The laboratory's options from the command's arguments; what was left out is not there.

    Raises:
      UserError: one that is no list of what it should be.
    """
    from feddpa_jax.files.strict_yaml import parse_yaml
    from feddpa_jax.laboratory.options import Options, check_numbers

    limits: dict[str, tuple[Callable[[str], Any], float, float]] = {
        "scales": (float, 0, 1_000_000),
        "supports": (int, 1, 10_000),
        "layers": (int, 0, 10_000),
    }
    found: dict[str, Any] = {"exact": known.exact, "fresh": known.fresh, "choose": known.choose}
    found["cells"], found["foreign"] = known.cells, known.foreign
    if known.keep is not None:
        found["keep"] = known.keep.lower()
    for name, (kind, lowest, most) in limits.items():
        text = getattr(known, name)
        if text is None:
            continue
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        check_numbers(name, values, lowest, most, text)
        found[name] = values
    if known.rules is not None:
        found["rules"] = tuple(dict.fromkeys(name.strip() for name in known.rules.split(",")))
    if known.embed_with is not None:
        found["embed_with"] = tuple(
            dict.fromkeys(name.strip() for name in known.embed_with.split(","))
        )
    if known.parameters is not None:
        found["parameters"] = parse_yaml(known.parameters, "--parameters")
    found["by"] = tuple(dict.fromkeys(name.strip() for name in known.by.split(",")))
    Options(**found)  # Refuses the rest.
    return found
