"""What the laboratory is asked for."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from feddpa_jax.files.escape import short
from feddpa_jax.hyperparameters import Value
from feddpa_jax.laboratory.choosing import HEADINGS, How
from feddpa_jax.laboratory.grid import CURVE_METRICS
from feddpa_jax.laboratory.stand_ins import SAMPLE, check_source
from feddpa_jax.types import UserError
from feddpa_jax.weighting.looking import MIXES
from feddpa_jax.weighting.settings import Model

Keep = Literal["p"]

# Of a list: every number multiplies the settings that are tried.
MOST_VALUES = 100


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
      rules: names of rules; None for all registered ones.
      scales: what similarities are multiplied by.
      supports: numbers of training prompts; None: the run's, and all that a client has.
      layers: prompts are embedded after so many; None: after each quarter of the model.
      embed_with: the models that prompts are embedded under; None: all, and of rules that are run
        exactly the local one.
      by: the metrics that settings are chosen by.
      choose: "client": on what each client can know, its own held-out examples and stand-ins for
        foreign prompts; "pooled": on all clients' held-out examples, which no federation has.
      foreign: where the stand-ins are from: "base", "sample", or a file (see `stand_ins`).
      keep: "p": of the settings that lose nothing on P beyond its interval, the one with the best
        TTP is chosen; None: the best mean of both.
      exact: how many of the best rules are run exactly, beside the paper's.
      cells: at most so many pairs of a client and an instance are looked at, drawn at random.
      fresh: compute the evidence again.
      parameters: by rule, values to try of its hyperparameters by name; a rule that is not here is
        tried with those of its registration, or its defaults.
    """

    rules: tuple[str, ...] | None = None
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5)
    supports: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    embed_with: tuple[Model, ...] | None = None
    by: tuple[str, ...] = ("nll",)
    choose: How = "client"
    foreign: str = SAMPLE
    keep: Keep | None = None
    exact: int = 2
    cells: int = 32_768
    fresh: bool = False
    parameters: Mapping[str, Mapping[str, Sequence[Value]]] = dataclasses.field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        """Refuses what cannot be tried.

        Raises:
          UserError: an option, and what it may be.
        """
        if self.rules is not None and not all(self.rules):
            raise UserError(f"rules: {','.join(self.rules)!r} has an empty name; write cosine,gate")
        if not isinstance(self.parameters, dict) or not all(
            map(_are_lists, self.parameters.values())
        ):
            raise UserError(
                f"parameters: {short(repr(self.parameters))} does not name lists of values by "
                "rule and hyperparameter; write 'gate: {ridge: [0.01, 0.1]}'"
            )
        check_numbers("supports", self.supports, 1, 10_000)
        check_numbers("layers", self.layers, 0, 10_000)
        check_numbers("scales", self.scales, 0, 1_000_000)
        models = self.embed_with
        if models is not None and (not models or not set(models) <= set(MIXES)):
            shown = ",".join(map(str, models))
            raise UserError(f"embed_with: {shown!r} is unknown; give some of {', '.join(MIXES)}")
        if not self.by or not set(self.by) <= set(CURVE_METRICS):
            known = " or ".join(CURVE_METRICS)
            raise UserError(f"by: {','.join(self.by)!r} is unknown; give {known}, or both")
        if self.choose not in HEADINGS:
            raise UserError(f"choose: {self.choose!r} is unknown; give {' or '.join(HEADINGS)}")
        check_source(self.foreign)
        if self.keep not in (None, "p"):
            raise UserError(f"keep: {self.keep!r} is unknown; give p, or leave it out")
        if not 100 <= self.cells <= 1_000_000_000:
            raise UserError(f"cells: {self.cells} is not from 100 to 1,000,000,000")
        if self.exact < 0:
            raise UserError(f"exact: {self.exact} is below 0; give 0 for none")


def _are_lists(own: Any) -> bool:
    """Whether it is a mapping to lists of values."""
    return isinstance(own, dict) and all(
        isinstance(values, list | tuple) and 0 < len(values) <= MOST_VALUES
        for values in own.values()
    )


def check_numbers(
    name: str, values: Sequence[float] | None, lowest: float, most: float, text: str = ""
) -> None:
    """Refuses numbers that no setting can have, or too many of them.

    Args:
      name: the option's.
      values: the numbers; empty where the text is no list of them.
      lowest: the least that is allowed.
      most: the most.
      text: what was typed, if it was.

    Raises:
      UserError: the option, and what it may be.
    """
    if values is None:
        return
    if not values or not all(lowest <= value <= most for value in values):
        shown = short(repr(text or list(values)))
        raise UserError(
            f"{name}: {shown} is no list of numbers from {lowest} to {most:,}, as 1,2,4"
        )
    if len(values) > MOST_VALUES:
        raise UserError(f"{name}: {len(values)} numbers are too many; give at most {MOST_VALUES}")
