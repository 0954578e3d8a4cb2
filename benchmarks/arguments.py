"""The options of launch/bench.sh."""

import argparse
from pathlib import Path
from typing import NoReturn

from feddpa_jax.types import UserError

PROGRAM = "launch/bench.sh"


class _Parser(argparse.ArgumentParser):
    """argparse with one line for an error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {PROGRAM} --help")


def _path(text: str) -> Path:
    # An empty one would be the current folder: most likely a variable that is not set.
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a path, . for this folder")
    return Path(text)


def make_parser() -> argparse.ArgumentParser:
    """The parser; what it does not know are fields of the configuration."""
    parser = _Parser(
        prog=PROGRAM,
        description="Measure training and answers against a torch + peft loop on the same work.",
        epilog="any field of the configuration: --section.field VALUE (feddpa fields lists them)",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=_path, metavar="FILE", help="YAML configuration")
    parser.add_argument("--out", type=_path, metavar="DIR", help="folder of bench.json")
    parser.add_argument("--updates", type=int, default=4, metavar="N", help="updates a client (4)")
    parser.add_argument(
        "--clients", default="1,2,4,8", metavar="LIST", help="for the cost per client (1,2,4,8)"
    )
    parser.add_argument(
        "--instances",
        type=int,
        default=4,
        metavar="N",
        help="test instances to answer (4; 0: none)",
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="passes a side (3)")
    parser.add_argument("--no-torch", action="store_true", help="measure ours alone")
    return parser
