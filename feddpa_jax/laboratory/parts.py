"""Clients that are scored together: all of a part see evidence of the same shapes."""

from typing import NamedTuple

import numpy as np

from feddpa_jax.laboratory.questions import Questions
from feddpa_jax.weighting.rule import learns


class Curves(NamedTuple):
    """Scores of every client's answers at `WEIGHTS`, and how they add up to P and TTP.

    Attributes:
      score_CIWX: by metric X of `CURVE_METRICS`.
      share_CIZ: each cell's part in P and in TTP, or in what else settings are chosen by.
    """

    score_CIWX: np.ndarray
    share_CIZ: np.ndarray


class Part(NamedTuple):
    """Clients that see evidence of the same shapes, and the rows that it weighs.

    Attributes:
      clients: their places.
      fold: the half of their held-out examples that is left out, and weighed; -1 for none, which
        weighs everything else.
    """

    clients: list[int]
    fold: int

    def curves_of(self, curves: Curves, fold_CI: np.ndarray | None) -> Curves:
        """The clients' curves, in which only the part's rows count; None if all are."""
        members = np.array(self.clients)
        score_CIWX, share_CIZ = (values[members] for values in curves)
        if fold_CI is not None:
            weighed_CI1 = (fold_CI[members] == self.fold)[..., None]
            share_CIZ = np.where(weighed_CI1, share_CIZ, 0.0).astype(np.float32)
        return Curves(score_CIWX, share_CIZ)


def parts_of(rule: str, questions: Questions, at_once: int) -> list[Part]:
    """All clients and rows, each once.

    Args:
      rule: one that learns sees a client's two halves apart.
      questions: of the clients.
      at_once: at most so many clients are in a part.
    """
    return [
        Part(clients.tolist(), whole.fold)
        for whole in _whole(rule, questions)
        for clients in np.array_split(whole.clients, -(-len(whole.clients) // at_once))
    ]


def _whole(rule: str, questions: Questions) -> list[Part]:
    everyone = range(len(questions.ids))
    if not learns(rule):
        return [Part(list(everyone), -1)]
    found: dict[tuple[int, int], list[int]] = {}
    for c, fold_J in enumerate(questions.folds()):
        for fold in np.unique(fold_J).tolist():
            found.setdefault((fold, len(questions.held_without(c, fold))), []).append(c)
    return [Part(clients, fold) for (fold, _), clients in found.items()]
