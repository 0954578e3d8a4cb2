"""The arguments of the command line, and what is wrong with them before anything is loaded."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from feddpa_jax.files.bucket import folder_at
from feddpa_jax.files.problems import check_path
from feddpa_jax.types import UserError

# Commands that read no configuration.
NO_FIELDS = ("report", "fields")
_OVERRIDES = "any field of the configuration: --section.field VALUE (feddpa fields lists them)"


class Parser(argparse.ArgumentParser):
    """argparse with errors as the contract has them: one line, exit 2."""

    def error(self, message: str) -> NoReturn:
        """Refuses the arguments."""
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")

    def add_config(self) -> None:
        """--config."""
        self.add_argument("--config", type=path, metavar="FILE", help="YAML configuration")

    def add_run_dir(self) -> None:
        """--run-dir."""
        self.add_argument(
            "--run-dir",
            type=folder,
            required=True,
            metavar="DIR",
            help="the run's folder, or gs://bucket/folder",
        )

    def add_step(self) -> None:
        """--step."""
        self.add_argument(
            "--step",
            default="last",
            metavar="last|best|N",
            help="which checkpoint: the last, that with the lowest loss on held-out examples, or "
            "that of a round",
        )


def path(text: str) -> Path:
    """A path that an argument names.

    Raises:
      ArgumentTypeError: it is empty.
    """
    # An empty one would be the current folder: most likely a variable that is not set.
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a path, . for this folder")
    return Path(text)


def folder(text: str) -> Path:
    """A folder that an argument names, on a disk or in a bucket.

    Raises:
      ArgumentTypeError: it is empty, or cannot be used.
    """
    try:
        return folder_at(text) if "://" in text else path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def make_parser(commands: Mapping[str, Any]) -> Parser:
    """The parser of the command line; what it does not know are fields of the configuration.

    Args:
      commands: by name, modules with `HELP` and `add_arguments`.
    """
    parser = Parser(
        prog="feddpa", description="Federated dual-adapter fine-tuning of language models in JAX."
    )
    added = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in commands.items():
        own = added.add_parser(
            name,
            help=command.HELP,
            description=command.HELP,
            epilog=None if name in NO_FIELDS else _OVERRIDES,
            allow_abbrev=False,
        )
        command.add_arguments(own)
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
