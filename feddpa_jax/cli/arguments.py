"""The arguments of the command line, and what is wrong with them before anything is loaded."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from feddpa_jax.cli.join import HEARTBEAT, WAIT
from feddpa_jax.files.problems import check_path
from feddpa_jax.types import UserError

_OVERRIDES = "any field of the configuration: --section.field VALUE (feddpa fields lists them)"


class _Parser(argparse.ArgumentParser):
    """argparse with errors as the contract has them: one line, exit 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def _path(text: str) -> Path:
    # An empty one would be the current folder: most likely a variable that is not set.
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a path, . for this folder")
    return Path(text)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line; what it does not know are fields of the configuration."""
    parser = _Parser(
        prog="feddpa", description="Federated dual-adapter fine-tuning of language models in JAX."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *, run_dir: bool, config: bool) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=_OVERRIDES, allow_abbrev=False
        )
        if config:
            sub.add_argument("--config", type=_path, metavar="FILE", help="YAML configuration")
        if run_dir:
            sub.add_argument(
                "--run-dir", type=_path, required=True, metavar="DIR", help="the run's folder"
            )
        return sub

    train = command(
        "train",
        "Train a federation, or go on with one that was stopped, and evaluate it at the end.",
        run_dir=True,
        config=True,
    )
    train.add_argument("--no-eval", action="store_true", help="do not evaluate at the end")
    train.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes; how many, and where, JAX finds out on TPU pods and SLURM",
    )
    train.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="outside TPU pods and SLURM: address of process 0, and a port that is free there",
    )
    train.add_argument("--processes", type=int, metavar="N", help="how many processes there are")
    train.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    train.add_argument(
        "--wait",
        type=float,
        default=WAIT,
        metavar="SECONDS",
        help=f"processes that have not all come by then end ({WAIT:g})",
    )
    train.add_argument(
        "--heartbeat",
        type=float,
        default=HEARTBEAT,
        metavar="SECONDS",
        help="a process that is silent for so long counts as gone, and the others end "
        f"({HEARTBEAT:g})",
    )
    evaluate = command(
        "eval",
        "Evaluate a run: every client, task and mode. With --config: evaluate the PEFT folders "
        "that init.global_adapter and init.local_adapter name, into a new --run-dir.",
        run_dir=True,
        config=True,
    )
    generate = command(
        "generate", "Answer one prompt for one client of a run.", run_dir=True, config=False
    )
    generate.add_argument("--client", required=True, metavar="NAME", help="whose adapters answer")
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="the instruction")
    generate.add_argument("--input", default="", metavar="TEXT", help="its context, if any")
    generate.add_argument(
        "--mode",
        choices=("base", "global", "local", "fixed", "instance"),
        help="how the adapters are mixed; the method's own way if left out",
    )
    export = command(
        "export",
        "Write a run's adapters as PEFT folders, read them back and compare.",
        run_dir=True,
        config=False,
    )
    export.add_argument("--out", type=_path, required=True, metavar="DIR", help="new folder")
    export.add_argument(
        "--mixed",
        type=float,
        metavar="W",
        help="also both adapters of every client at local weight W as one of twice the rank",
    )
    export.add_argument(
        "--merged",
        metavar="global|NAME[:W]",
        help="also a full model with the global adapter, a client's local one, or both at local "
        "weight W",
    )
    export.add_argument(
        "--check", action="store_true", help="write nothing; compare the export in DIR with the run"
    )
    weigh = command(
        "weigh",
        "Try weighting rules on a run: evidence is computed once, thousands of settings are scored "
        "on held-out examples, the best of every rule on the test instances.",
        run_dir=True,
        config=False,
    )
    weigh.add_argument(
        "--rules", metavar="LIST", help="names, or FILE.py:FUNCTION (all registered ones)"
    )
    weigh.add_argument(
        "--scales", metavar="LIST", help="what similarities are multiplied by (0.25,0.5,0.75,1,1.5)"
    )
    weigh.add_argument(
        "--supports", metavar="LIST", help="training prompts of a client (the run's, and all)"
    )
    weigh.add_argument(
        "--layers", metavar="LIST", help="embed after so many layers (each quarter of the model)"
    )
    weigh.add_argument(
        "--by",
        default="nll",
        metavar="LIST",
        help="what settings are chosen by: nll, exact_match, or places in both (nll)",
    )
    weigh.add_argument(
        "--exact",
        type=int,
        default=2,
        metavar="N",
        help="the best N rules and the paper's are run again, with answers (2; 0: none)",
    )
    weigh.add_argument("--fresh", action="store_true", help="compute the evidence again")
    for sub in (evaluate, generate, export, weigh):
        sub.add_argument(
            "--step",
            default="last",
            metavar="last|best|N",
            help="which checkpoint: the last, the one of the lowest training loss, or a round's",
        )
    data = command(
        "data",
        "Check the configured data and print their statistics; or write the built-in sample.",
        run_dir=False,
        config=True,
    )
    data.add_argument("--make", type=_path, metavar="DIR", help="write the sample data there")
    bench = command(
        "bench",
        "Measure training and answers against a torch + peft loop on the same work.",
        run_dir=False,
        config=True,
    )
    bench.add_argument("--out", type=_path, metavar="DIR", help="folder of bench.json")
    bench.add_argument("--updates", type=int, default=4, metavar="N", help="updates a client (4)")
    bench.add_argument(
        "--clients", default="1,2,4,8", metavar="LIST", help="for the cost per client (1,2,4,8)"
    )
    bench.add_argument(
        "--instances",
        type=int,
        default=4,
        metavar="N",
        help="test instances to answer (4; 0: none)",
    )
    bench.add_argument("--repeat", type=int, default=3, metavar="N", help="passes a side (3)")
    bench.add_argument("--no-torch", action="store_true", help="measure ours alone")
    plan = command(
        "plan",
        "Compile the round ahead of time, and print the memory, the FLOPs, what devices send each "
        "other, and how fast it could be.",
        run_dir=False,
        config=True,
    )
    plan.add_argument(
        "--topology", metavar="NAME", help="a TPU slice, v5p:4x4x4; the devices at hand if left out"
    )
    plan.add_argument(
        "--clients",
        type=int,
        metavar="N",
        help="so many, with the configured clients' data in turn",
    )
    plan.add_argument("--out", type=_path, metavar="DIR", help="folder of plan.json")
    report = command(
        "report",
        "Write one page that shows a run, or compares several.",
        run_dir=False,
        config=False,
    )
    report.add_argument("runs", nargs="+", type=_path, metavar="R", help="folders of runs")
    report.add_argument("--out", type=_path, required=True, metavar="FILE", help="the page, *.html")
    commands.add_parser("fields", help="List every field of the configuration.")
    return parser


def _texts(known: argparse.Namespace, overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, value in vars(known).items():
        if isinstance(value, str) and name != "command":
            yield f"--{name.replace('_', '-')}", value
    option = ""
    for text in overrides:
        option = text.partition("=")[0] if text.startswith("--") else option
        yield option or text, text


def check_texts(known: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Refuses bytes that are no text; a path may have them.

    Raises:
      UserError: the option.
    """
    for name, value in vars(known).items():
        if isinstance(value, list) and name != "runs":  # What argparse makes of --prompt=--.
            raise UserError(f"--{name.replace('_', '-')}: '--' is no value; write another")
    for option, text in _texts(known, overrides):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = option.encode("ascii", "backslashreplace").decode()
            raise UserError(
                f"{shown}: not UTF-8 from character {error.start + 1} on; write it in UTF-8"
            ) from None


def check_paths(known: argparse.Namespace) -> None:
    """Resolves `~` in paths, which shells leave in --out=~/x; refuses what can be no path.

    Raises:
      UserError: the option, the path and what is wrong with it.
    """
    for name, value in list(vars(known).items()):
        option = "" if name == "runs" else f"--{name.replace('_', '-')}"
        paths = value if isinstance(value, list) else [value]
        if not all(isinstance(path, Path) for path in paths):
            continue
        for path in paths:
            check_path(option, path)
        expanded = [path.expanduser() for path in paths]
        setattr(known, name, expanded if isinstance(value, list) else expanded[0])
