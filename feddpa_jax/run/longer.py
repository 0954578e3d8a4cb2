"""More rounds for a run that has begun, where the rounds so far do not depend on their number."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from feddpa_jax.config import Config
from feddpa_jax.federated.method import METHODS
from feddpa_jax.hyperparameters import signature
from feddpa_jax.types import UserError


def without_more_rounds(old: Config, new: Config, saved: Sequence[int], run: Path) -> Config:
    """The new configuration with the old one's number of rounds, if the run may have more.

    The bits are those of a run that was as long from the start, if both are computed in blocks of
    the same shapes; they are equal to rounding else.

    Args:
      old: the run's.
      new: perhaps of more rounds.
      saved: the rounds that have checkpoints, from 0, ascending.
      run: its folder, for messages.

    Raises:
      UserError: more rounds are asked for, and the rounds so far would have been others.
    """
    before, wanted = old.fed.rounds, new.fed.rounds
    if wanted <= before or new.fed.method != old.fed.method:
        return new
    why = ""
    if old.fed.rate_over_rounds != "constant":
        why = f"its learning rate falls over {before} (fed.rate_over_rounds)"
    elif "rounds" in signature(METHODS.find(old.fed.method).build):
        why = f"the sizes of {old.fed.method} follow from their number"
    elif saved and saved[-1] >= before:
        why = f"its clients have trained for themselves after the last of {before}"
    if why:
        raise UserError(
            f"fed.rounds: the run in {run} cannot have {wanted} rounds: {why}; train anew into "
            "another --run-dir"
        )
    return dataclasses.replace(new, fed=dataclasses.replace(new.fed, rounds=before))
