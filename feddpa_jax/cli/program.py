"""The command line: feddpa COMMAND [--config FILE] [--section.field VALUE ...]."""

from feddpa_jax.cli import interrupt

if __name__ == "__main__":
    interrupt.install()

import argparse
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from feddpa_jax.cli import (
    check,
    compare,
    data,
    eval,
    export,
    fields,
    generate,
    plan,
    report,
    streams,
    supervise,
    train,
    weigh,
)
from feddpa_jax.cli.arguments import NO_FIELDS, check_paths, check_texts, make_parser
from feddpa_jax.files.escape import one_line
from feddpa_jax.files.problems import in_one_line
from feddpa_jax.types import UserError

COMMANDS = {
    "train": train,
    "eval": eval,
    "generate": generate,
    "export": export,
    "weigh": weigh,
    "compare": compare,
    "data": data,
    "check": check,
    "plan": plan,
    "report": report,
    "fields": fields,
}
# The commands whose programs are kept; `plan` measures what compiling takes.
_COMPILE = ("train", "eval", "generate", "export", "weigh", "compare")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: of the command line; None for the program's own, which also makes the process's
        streams and Ctrl-C safe.

    Returns:
      0; 2 with one line on stderr for an error that the user can fix; 130 if it was stopped; 141 if
      nobody reads what a command prints.
    """
    if arguments is None:
        prepare()
    try:
        known, overrides = make_parser(COMMANDS).parse_known_args(arguments)
        check_texts(known, overrides)
        check_paths(known)
        return _run(known, overrides)
    except streams.OutputLostError as lost:
        return _lost(lost)
    except SystemExit as leave:
        return _said_all(leave)
    except KeyboardInterrupt:
        return _stopped()
    except BaseException as error:
        if interrupt.pressed():
            return _stopped()
        processes = sys.modules.get("feddpa_jax.devices.processes")
        if processes is not None and processes.lost_another(error):
            return _fail(supervise.LOST)
        line = in_one_line(error)
        if line is not None:
            return _fail(line)
        if processes is None or not processes.joined():
            raise
        traceback.print_exc()
        return _leave(1)


def prepare() -> None:
    """Makes the process ready to be a program; once, and before anything else is imported."""
    if not interrupt.installed():
        interrupt.install()
    streams.prepare()


def program() -> NoReturn:
    """The process from its first line to its exit code."""
    code = main()
    if code == interrupt.CODE:
        interrupt.end()
    interrupt.ignore()
    sys.exit(code)


def _fail(line: str) -> int:
    if not interrupt.pressed():
        print(f"feddpa: error: {one_line(' '.join(line.split()))}", file=sys.stderr)
    return _leave(2)


def _lost(lost: streams.OutputLostError) -> int:
    # 141: what a shell reports of a program that SIGPIPE ended.
    return _leave(141) if lost.reader_gone else _fail(f"standard output: {lost.reason}")


def _stopped() -> int:
    interrupt.tell()
    return _leave(interrupt.CODE)


def _leave(code: int) -> int:
    """The code; a process among others ends with it at once."""
    processes = sys.modules.get("feddpa_jax.devices.processes")
    return code if processes is None else processes.leave(code)


def _said_all(leave: SystemExit) -> int:
    """Of --help: the text may still be in the buffer."""
    try:
        sys.stdout.flush()
    except streams.OutputLostError as lost:
        return _lost(lost)
    raise leave


def _run(known: argparse.Namespace, overrides: list[str]) -> int:
    """The exit code of a command, and what it does."""
    from feddpa_jax.plan.topology import prepare_environment, quiet_compiler

    quiet_compiler()
    if known.command == "plan" and known.topology is not None:
        prepare_environment()
    if not _only_prints(known):
        streams.go_on_without()
    if known.command == "train":
        place = (known.coordinator, known.processes, known.process)
        if known.distributed or any(part is not None for part in place):
            from feddpa_jax.cli import join

            join.check_place(*place, known.wait, known.heartbeat)
            if interrupt.installed():
                code = supervise.split()
                if code is not None:
                    return code
                interrupt.install()
            join.join(*place, known.wait, known.heartbeat)
    _command(known, overrides)
    sys.stdout.flush()
    lost = streams.lost()
    if lost is not None and not lost.reader_gone:
        print(f"feddpa: standard output: {lost.reason}; the command went on", file=sys.stderr)
    return 0


def _only_prints(known: argparse.Namespace) -> bool:
    """Whether a command's only result is what it prints; the others write files."""
    targets = {"data": ("make", "out"), "plan": ("out",)}.get(known.command)
    if targets is not None:
        return all(getattr(known, target) is None for target in targets)
    return known.command in ("fields", "generate", "check")


def as_option(message: str, known: argparse.Namespace) -> str:
    """A message of the library, which names an argument of a function, with the option's name.

    >>> as_option("run_dir: holds no run", argparse.Namespace(run_dir="a"))
    '--run-dir: holds no run'
    """
    name, colon, _ = message.partition(": ")
    if not colon or name not in vars(known):
        return message
    return f"--{name.replace('_', '-')}{message[len(name) :]}"


def _command(known: argparse.Namespace, overrides: list[str]) -> None:
    # Heavy imports wait until the arguments are right: --help and typing errors answer at once.
    from feddpa_jax.cli.console import Reporter, silent
    from feddpa_jax.devices import processes
    from feddpa_jax.devices.compilation_cache import keep_compiled_programs

    if overrides and known.command in NO_FIELDS:
        raise UserError(f"feddpa {known.command}: {overrides[0]!r} is not expected")
    # What the others would say is what the first one says.
    reporter = Reporter() if not processes.joined() or processes.is_first() else silent()
    if known.command in _COMPILE:
        keep_compiled_programs()
    with interrupt.working(), reporter.logs():
        try:
            COMMANDS[known.command].run(known, overrides, reporter)
        except UserError as error:
            raise UserError(as_option(str(error), known)) from error
    processes.part()


if __name__ == "__main__":
    program()
