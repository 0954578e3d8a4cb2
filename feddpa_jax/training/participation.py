"""Which clients take part in a round: those that are available, drawn anew; and who drops out.

Every draw follows from the seed, the round and the client's own id (`draws.py`), so a cohort
depends neither on the clients' order nor on the rounds before it, and a resumed run draws the same.

When a client is available, its data may say (`timetable.py`), or one of two models, for a share a
of the rounds:

    daily   A client is on in the first a T rounds of its day of T rounds, and its day begins at a
            round of its own, as in another time zone. So the population changes over the day and
            returns, as the blocks of Eichner, Koren, McMahan, Srebro, Talwar: *Semi-Cyclic
            Stochastic Gradient Descent*, ICML 2019, arXiv 1904.10120.
    markov  Each client is a Markov chain of two states, on and off, as in Rodio, Faticanti, Marfoq,
            Neglia, Leonardi: *Federated Learning under Heterogeneous and Correlated Client
            Availability*, INFOCOM 2023, arXiv 2301.04632, with the same chances for all clients:
            off to on a / T, on to off (1 - a) / T. That is: in each round the state is drawn anew
            with the chance 1 / T, on with the chance a; and so it is in round 0.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from feddpa_jax.training.draws import uniform
from feddpa_jax.training.timetable import Timetable

# The last word of what a client draws: one for each purpose.
_PARTICIPATION, _DROPOUT, _STATE, _DAY = 1, 4, 5, 6
# Of how many clients the availability is found at once: bounds the memory.
_AT_ONCE = 4096
# How many draws of Markov chains are made to count clients.
_MOST_STATES = 30_000_000


class Availability(NamedTuple):
    """When clients can take part.

    Attributes:
      kind: "always", "column" for a timetable, or a model of the module's: "daily" or "markov".
      share: a, of the rounds in which a client is available, in a model.
      period: T, in rounds: a day; or between draws of a client's state, on average.
      timetable: of all clients; with "column" alone.
    """

    kind: Literal["always", "daily", "markov", "column"] = "always"
    share: float = 0.5
    period: int = 24
    timetable: Timetable | None = None

    def of(self, places: np.ndarray) -> "Availability":
        """The same of some clients."""
        if self.timetable is None:
            return self
        return self._replace(timetable=self.timetable.of(places))


ALWAYS = Availability()


def how_many(clients: int, participation: float, cohort: int | None = None) -> int:
    """How many of the clients a round asks for: `cohort`, or max(1, floor(participation * C)).

    >>> how_many(10, 0.3), how_many(10, 1.0, cohort=4)
    (3, 4)
    """
    if cohort is not None:
        return min(cohort, clients)
    return max(1, math.floor(participation * clients + 1e-9))


def sample_participants(
    ids: Sequence[int],
    *,
    participation: float,
    seed: int,
    round_number: int,
    cohort: int | None = None,
    availability: Availability = ALWAYS,
) -> np.ndarray:
    """A uniform sample of the available clients without replacement.

    Each client draws a number that depends on its own id, the seed and the round alone, and the
    smallest take part; so the sample does not depend on the order of the clients. If fewer are
    available than the round asks for, all of these take part. If nobody is, the server waits for
    one: the client with the smallest number of all.

    Args:
      ids: a number for each client, from its name.
      participation: fraction of clients in a round, in (0, 1].
      seed: the run's seed.
      round_number: from 0.
      cohort: number of clients in a round, instead of the fraction.
      availability: when clients can take part.

    Returns:
      Indexes into `ids`, ascending, int32.

    >>> sample_participants([5, 6, 7, 8], participation=1.0, seed=0, round_number=3).tolist()
    [0, 1, 2, 3]
    """
    count = how_many(len(ids), participation, cohort)
    return _sample(tuple(ids), count, availability, seed, round_number)


@functools.lru_cache(maxsize=4)  # A round asks several times.
def _sample(
    ids: tuple[int, ...], count: int, availability: Availability, seed: int, round_number: int
) -> np.ndarray:
    id_C = np.array(ids, np.uint32)
    draws = uniform(seed, round_number, id_C, _PARTICIPATION)
    order = np.argsort(draws, kind="stable")
    chosen: list[int] = []
    size = count if availability.kind == "always" else max(256, 2 * count)
    for first in range(0, len(ids), size):
        some = order[first : first + size]
        chosen += some[available(id_C[some], availability.of(some), seed, round_number)].tolist()
        if len(chosen) >= count:
            break
    found = np.sort(np.array(chosen[:count] or order[:1], np.int32))
    found.flags.writeable = False
    return found


def available(
    id_C: np.ndarray, availability: Availability, seed: int, round_number: int
) -> np.ndarray:
    """Which clients can take part in a round: bool [C].

    Args:
      id_C: a number for each client, from its name.
      availability: when they can; a timetable is of these clients alone.
      seed: the run's seed.
      round_number: from 0.

    >>> day = Availability("daily", share=0.25, period=4)
    >>> [int(available(np.array([7]), day, 0, number)[0]) for number in range(8)]
    [1, 0, 0, 0, 1, 0, 0, 0]
    """
    kind, share, period, timetable = availability
    if kind == "always":
        return np.ones(len(id_C), bool)
    if timetable is not None:
        return timetable.there(round_number)
    if kind == "daily":
        begins_C = (uniform(seed, id_C, _DAY) * period).astype(np.int64)
        return (round_number - begins_C) % period < max(1, round(share * period))
    parts = [id_C[first : first + _AT_ONCE] for first in range(0, len(id_C), _AT_ONCE)]
    return np.concatenate([_chain(part, share, period, seed, round_number) for part in parts])


def how_many_there(
    id_C: np.ndarray, availability: Availability, seed: int, rounds: int
) -> np.ndarray:
    """How many clients are available in each of the first rounds: int64 [rounds].

    What is repeated after a period is counted once. Of Markov chains so many rounds are counted as
    take a second or so, at least one.

    Args:
      id_C: a number for each client, from its name.
      availability: when they can take part.
      seed: the run's seed.
      rounds: of the run.
    """
    kind, _, period, timetable = availability
    if kind == "always":
        return np.full(rounds, len(id_C))
    if timetable is not None:
        return timetable.counts()[np.arange(rounds) % period]
    counted = max(1, min(rounds, _MOST_STATES // (period * len(id_C))))
    if kind == "daily":
        counted = min(rounds, period)
    return np.array([available(id_C, availability, seed, n).sum() for n in range(counted)])


def _chain(id_C: np.ndarray, share: float, period: int, seed: int, round_number: int) -> np.ndarray:
    """The states of Markov chains: what the last round said that drew one anew."""
    on_C = np.zeros(len(id_C), bool)
    left, last = np.arange(len(id_C)), round_number
    while len(left):
        rounds_T1 = last - np.arange(min(period, last + 1), dtype=np.int64)[:, None]
        draws_TC = uniform(seed, rounds_T1, id_C[left], _STATE).reshape(len(rounds_T1), -1)
        # A draw below 1 / T makes a new state, on if it is below a / T; round 0 always makes one.
        chance_T1 = np.where(rounds_T1 == 0, 1.0, 1.0 / period)
        made_TC = draws_TC < chance_T1
        latest_C = made_TC.argmax(axis=0)
        there_C = made_TC.any(axis=0)
        draw_C = draws_TC[latest_C, np.arange(len(left))]
        on_C[left[there_C]] = (draw_C < share * chance_T1[latest_C, 0])[there_C]
        left, last = left[~there_C], last - len(rounds_T1)
    return on_C


def returning(
    members: np.ndarray, ids: Sequence[int], *, dropout: float, seed: int, round_number: int
) -> np.ndarray:
    """Those of a round's participants that do not drop out, ascending.

    Args:
      members: the participants, indexes into `ids`.
      ids: a number for each client, from its name.
      dropout: the chance that a participant drops out, each on its own.
      seed: the run's seed.
      round_number: from 0.

    >>> returning(np.array([0, 2]), [5, 6, 7], dropout=0.0, seed=0, round_number=0).tolist()
    [0, 2]
    """
    if not dropout:
        return members
    id_K = np.array([ids[member] for member in members.tolist()], np.uint32)
    return members[uniform(seed, round_number, id_K, _DROPOUT) >= dropout]
