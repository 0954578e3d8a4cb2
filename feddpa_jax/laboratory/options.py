"""What `feddpa weigh` was asked for."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from feddpa_jax.files.escape import short
from feddpa_jax.laboratory.grid import CURVE_METRICS
from feddpa_jax.types import UserError

# Of a list: every number multiplies the settings that are tried.
MOST_VALUES = 100


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command was asked for.

    Attributes:
      rules: names of rules; None for all registered ones.
      scales: what similarities are multiplied by.
      supports: numbers of training prompts; None: the run's, and all that a client has.
      layers: prompts are embedded after so many; None: after each quarter of the model.
      by: the metrics that settings are chosen by on validation.
      exact: how many of the best rules are run exactly, beside the paper's.
      fresh: compute the evidence again.
    """

    rules: tuple[str, ...] | None = None
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5)
    supports: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    by: tuple[str, ...] = ("nll",)
    exact: int = 2
    fresh: bool = False


def read_options(known: argparse.Namespace) -> Options:
    """The options from the command's arguments.

    Raises:
      UserError: one that is no list of what it should be.
    """

    def read(name: str, kind: Callable[[str], Any], lowest: float, most: float) -> Any:
        text = getattr(known, name)
        if text is None:
            return None
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or not all(lowest <= value <= most for value in values):
            raise UserError(
                f"--{name}: {short(text)!r} is no list of numbers from {lowest} to {most:,}, "
                "as 1,2,4"
            )
        if len(values) > MOST_VALUES:
            raise UserError(
                f"--{name}: {len(values)} numbers are too many; give at most {MOST_VALUES}"
            )
        return values

    rules = None
    if known.rules is not None:
        rules = tuple(dict.fromkeys(name.strip() for name in known.rules.split(",")))
        if not all(rules):
            raise UserError(f"--rules: {known.rules!r} has an empty name; write cosine,gate")
    by = tuple(dict.fromkeys(name.strip() for name in known.by.split(",")))
    if not set(by) <= set(CURVE_METRICS):
        known_ones = " or ".join(CURVE_METRICS)
        raise UserError(f"--by: {known.by!r} is unknown; give {known_ones}, or both")
    if known.exact < 0:
        raise UserError(f"--exact: {known.exact} is below 0; give 0 for none")
    options = Options(
        rules=rules,
        supports=read("supports", int, 1, 10_000),
        layers=read("layers", int, 0, 10_000),
        by=by,
        exact=known.exact,
        fresh=known.fresh,
    )
    scales = read("scales", float, 0, 1_000_000)
    return options if scales is None else dataclasses.replace(options, scales=scales)
