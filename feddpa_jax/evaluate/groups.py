"""Which clients are evaluated, and in what groups: memory holds what belongs to one group.

Answers, scores and weights of the groups before wait on the disk.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from feddpa_jax.evaluate.evaluation import ModeResult
from feddpa_jax.evaluate.modes import ModeWeights
from feddpa_jax.files.spool import SpooledRows, SpooledTexts
from feddpa_jax.training.draws import uniform
from feddpa_jax.types import UserError, client_id

# So many clients are evaluated at once.
AT_ONCE = 256


def evaluated(names: Sequence[str], count: int | None, seed: int) -> np.ndarray | None:
    """The clients that are evaluated, by index, ascending; None: all of them, at once.

    Each client draws a number that depends on its own name and the seed alone, and the smallest are
    evaluated.

    Args:
      names: of all clients.
      count: how many; None: all.
      seed: the run's.

    Raises:
      UserError: there are fewer clients.

    >>> evaluated(["anna", "ben", "cleo"], 2, seed=0)
    array([0, 1])
    >>> evaluated(["anna", "ben", "cleo"], None, seed=0) is None
    True
    """
    check_evaluated(count, len(names))
    if count is None or count == len(names):
        return None if len(names) <= AT_ONCE else np.arange(len(names))
    draws = uniform(seed, np.array([client_id(name) for name in names]), 4)
    return np.sort(np.argsort(draws, kind="stable")[:count])


def check_evaluated(count: int | None, clients: int) -> None:
    """Refuses to evaluate more clients than there are; a run does so before it trains.

    Raises:
      UserError: there are fewer.

    >>> check_evaluated(9, 8)
    Traceback (most recent call last):
      ...
    feddpa_jax.types.UserError: eval.clients: 9 of 8 clients; give at most 8
    """
    if count is not None and count > clients:
        raise UserError(f"eval.clients: {count} of {clients} clients; give at most {clients}")


def in_groups(members: np.ndarray) -> list[np.ndarray]:
    """Clients in groups of at most `AT_ONCE`."""
    return [members[first : first + AT_ONCE] for first in range(0, len(members), AT_ONCE)]


class Joined:
    """The results of one group of clients after the other, as those of all."""

    def __init__(self, place: Path | None):
        """Args: the folder whose disk they wait on; the system's for temporary files if None."""
        self._place = place
        self._modes: dict[str, _OneMode] = {}

    def add(self, results: dict[str, ModeResult]) -> None:
        """Takes the results of the next group, by mode.

        Raises:
          UserError: the disk is full.
        """
        for mode, own in results.items():
            self._modes.setdefault(mode, _OneMode(self._place)).add(own)

    def results(self) -> dict[str, ModeResult]:
        """All results, by mode; they are read from the disk as they are looked at."""
        return {mode: own.result() for mode, own in self._modes.items()}


class _OneMode:
    """What one mode gave, on the disk."""

    def __init__(self, place: Path | None):
        self._place = place
        self._scores: dict[str, SpooledRows] = {}
        self._weights: dict[str, SpooledRows] = {}
        self._texts: SpooledTexts | None = None

    def add(self, own: ModeResult) -> None:
        for name, scores_CI in own.scores_CI.items():
            self._scores.setdefault(name, SpooledRows(self._place)).add(scores_CI)
        # Of gates their means over the prompts are left.
        for name in ("global_CI", "local_CI", "similarity_CI"):
            if (found := getattr(own.weights, name)) is not None:
                self._weights.setdefault(name, SpooledRows(self._place)).add(found)
        if own.predictions_CI is not None:
            self._texts = self._texts or SpooledTexts(self._place)
            self._texts.add(own.predictions_CI)

    def result(self) -> ModeResult:
        weights = ModeWeights(**{name: spool.whole() for name, spool in self._weights.items()})
        scores_CI = {name: spool.whole() for name, spool in self._scores.items()}
        return ModeResult(weights, scores_CI, self._texts)
