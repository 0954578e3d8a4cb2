"""What weighting settings are chosen by: what each client can know, or everybody's examples.

A client has examples of its own that it held out, with their answers. Of other tasks it has neither
prompts nor answers; but it has stand-ins for them, prompts that the base makes up or public ones,
and the adapter that all clients share, which is what it would best answer foreign prompts with. So
for C clients, H_c held-out examples of client c, and N stand-ins whose answers are the shared
adapter's own (greedy):

    own     = mean over c of the mean over the H_c of their scores
    foreign = mean over c of the mean over the N of their scores

"client" chooses by the mean of both. "pooled" scores every client on all clients' held-out examples
and chooses by the mean of P and TTP there, which nobody in a federation could: it tells what a
choice with foreign answers at hand would reach.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from feddpa_jax.evaluate.personalization import Tasks, shares

How = Literal["client", "pooled"]
# How many stand-ins settings are chosen on. Rules see other prompts (see `DREAMS`).
AGREED = 16
# What settings are scored by, in the places of P and TTP.
HEADINGS: dict[How, tuple[str, str]] = {"client": ("own", "foreign"), "pooled": ("P", "TTP")}
# The one that stands for P, and what is asked for in the other, in words.
OWN: dict[How, str] = {
    "client": "each client's own held-out examples",
    "pooled": "clients' own tasks among the pooled held-out examples",
}
OTHER: dict[How, str] = {
    "client": "agreement with the shared adapter",
    "pooled": "TTP",
}


def words(how: How, stand_ins: str) -> str:
    """What settings are chosen on.

    Args:
      how: see above.
      stand_ins: what the stand-ins are, in words.

    >>> words("client", "public prompts")
    "each client's own held-out examples, and agreement with the shared adapter on public prompts"
    """
    told: dict[How, str] = {
        "client": f"{OWN['client']}, and {OTHER['client']} on {stand_ins}",
        "pooled": "the pooled held-out examples of all clients, which no federation has",
    }
    return told[how]


class Choosing(NamedTuple):
    """What settings are chosen by.

    Attributes:
      how: see above.
      rows: the instances that count, among all.
      share_CIZ: each one's part in the two scores whose mean decides, by client.
      group_I: the place of the client that held an instance out, or of its task if all clients'
        are pooled: what is drawn anew where P has an interval. -1 for stand-ins.
      names: of these clients, or tasks.
      stand_ins: what the stand-ins are, in words; "" if there are none.
    """

    how: How
    rows: slice
    share_CIZ: np.ndarray
    group_I: np.ndarray
    names: Sequence[str]
    stand_ins: str = ""

    @property
    def words(self) -> str:
        """What settings are chosen on."""
        return words(self.how, self.stand_ins)


def pooled(tasks: Tasks, rows: slice) -> Choosing:
    """Every client on everybody's held-out examples.

    Args:
      tasks: of the held-out examples.
      rows: where they are.
    """
    return Choosing("pooled", rows, shares_of(tasks), tasks.task_I, tasks.names)


def by_client(
    own: Sequence[np.ndarray],
    foreign: slice,
    rows: slice,
    names: Sequence[str],
    stand_ins: str,
) -> Choosing:
    """Each client on its own held-out examples, and on stand-ins for foreign prompts.

    Args:
      own: where each client's own are among all instances; clients without any do not count.
      foreign: where the stand-ins are.
      rows: which holds both.
      names: of the clients.
      stand_ins: what the stand-ins are, in words.

    >>> own = [np.array([2]), np.array([3, 4])]
    >>> by_client(own, slice(0, 2), slice(0, 5), ["anna", "ben"], "").share_CIZ[..., 0]
    array([[0.  , 0.  , 0.5 , 0.  , 0.  ],
           [0.  , 0.  , 0.  , 0.25, 0.25]], dtype=float32)
    """
    share_CIZ = np.zeros((len(own), rows.stop - rows.start, 2), np.float32)
    group_I = np.full(rows.stop - rows.start, -1)
    able = sum(bool(len(held_H)) for held_H in own)
    for c, held_H in enumerate(own):
        if len(held_H):
            share_CIZ[c, held_H - rows.start, 0] = 1 / (able * len(held_H))
            group_I[held_H - rows.start] = c
    count = foreign.stop - foreign.start
    share_CIZ[:, foreign.start - rows.start : foreign.stop - rows.start, 1] = 1 / (len(own) * count)
    return Choosing("client", rows, share_CIZ, group_I, names, stand_ins)


def shares_of(tasks: Tasks) -> np.ndarray:
    """Each cell's part in P and in TTP, float32 [C, I, 2]."""
    found = shares(tasks.own_CK)
    share_CKZ = np.stack([found["P"], found["TTP"]], axis=-1) / tasks.sizes()[:, None]
    return share_CKZ[:, tasks.task_I].astype(np.float32)
