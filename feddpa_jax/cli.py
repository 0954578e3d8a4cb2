"""The command line: feddpa COMMAND [--config FILE] [--section.field VALUE ...]."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from feddpa_jax import processes
from feddpa_jax.escape import one_line
from feddpa_jax.plan.topology import prepare_environment, quiet_compiler
from feddpa_jax.types import UserError

_OVERRIDES = "any field of the configuration: --section.field VALUE (feddpa fields lists them)"


class _Parser(argparse.ArgumentParser):
    """argparse with errors as the contract has them: one line, exit 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="feddpa", description="Federated dual-adapter fine-tuning of language models in JAX."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *, run_dir: bool, config: bool) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=_OVERRIDES, allow_abbrev=False
        )
        if config:
            sub.add_argument("--config", type=Path, metavar="FILE", help="YAML configuration")
        if run_dir:
            sub.add_argument(
                "--run-dir", type=Path, required=True, metavar="DIR", help="the run's folder"
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
    train.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: the first process")
    train.add_argument("--processes", type=int, metavar="N", help="elsewhere: how many there are")
    train.add_argument("--process", type=int, metavar="I", help="elsewhere: which this is, from 0")
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
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder")
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
    data.add_argument("--make", type=Path, metavar="DIR", help="write the sample data there")
    bench = command(
        "bench",
        "Measure training and answers against a torch + peft loop on the same work.",
        run_dir=False,
        config=True,
    )
    bench.add_argument("--out", type=Path, metavar="DIR", help="folder of bench.json")
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
    plan.add_argument("--out", type=Path, metavar="DIR", help="folder of plan.json")
    report = command(
        "report",
        "Write one page that shows a run, or compares several.",
        run_dir=False,
        config=False,
    )
    report.add_argument("runs", nargs="+", type=Path, metavar="R", help="folders of runs")
    report.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page, *.html")
    commands.add_parser("fields", help="List every field of the configuration.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; 0, or 2 with one line on stderr for what the user can mend."""
    try:
        known, overrides = _parser().parse_known_args(arguments)
        _run(known, overrides)
    except UserError as error:
        print(f"feddpa: error: {one_line(' '.join(str(error).split()))}", file=sys.stderr)
        return processes.leave(2)
    except KeyboardInterrupt:
        print("feddpa: stopped; the same command goes on from the last round", file=sys.stderr)
        return processes.leave(130)
    except Exception as error:
        if not processes.joined():
            raise
        if processes.lost_another(error):
            print(
                "feddpa: error: another process of the run is gone; start all of them again, the "
                "same command goes on from the last round",
                file=sys.stderr,
            )
            return processes.leave(2)
        traceback.print_exc()
        return processes.leave(1)
    return 0


def _run(known: argparse.Namespace, overrides: list[str]) -> None:
    quiet_compiler()
    if known.command == "plan" and known.topology is not None:
        prepare_environment()
    if known.command == "train":
        place = (known.coordinator, known.processes, known.process)
        if known.distributed or any(part is not None for part in place):
            processes.join(*place)
    # Heavy imports wait until the arguments are right: --help and typing errors answer at once.
    from feddpa_jax import commands
    from feddpa_jax.progress import Reporter, silent
    from feddpa_jax.report.command import report as write_report

    reporter = Reporter()
    if known.command == "train":
        # What the others would say is what the first one says.
        reporter = reporter if not processes.joined() or processes.is_first() else silent()
        commands.train(known.config, overrides, known.run_dir, not known.no_eval, reporter)
    elif known.command == "eval":
        commands.evaluate(known.config, known.run_dir, overrides, known.step, reporter)
    elif known.command == "generate":
        commands.generate(
            known.run_dir,
            overrides,
            client=known.client,
            instruction=known.prompt,
            context=known.input,
            mode=known.mode,
            step=known.step,
            reporter=reporter,
        )
    elif known.command == "export":
        commands.export(
            known.run_dir,
            overrides,
            out=known.out,
            mixed=known.mixed,
            merged=known.merged,
            step=known.step,
            checks=known.check,
            reporter=reporter,
        )
    elif known.command == "weigh":
        commands.weigh(known.run_dir, overrides, known, reporter)
    elif known.command == "data":
        commands.data(known.config, overrides, known.make, reporter)
    elif known.command == "bench":
        commands.bench(known.config, overrides, known, reporter)
    elif known.command == "plan":
        commands.plan(known.config, overrides, known, reporter)
    elif overrides:
        raise UserError(f"feddpa {known.command}: {overrides[0]!r} is not expected")
    elif known.command == "report":
        write_report(known.runs, known.out, reporter)
    else:
        commands.fields(reporter)


if __name__ == "__main__":
    sys.exit(main())
