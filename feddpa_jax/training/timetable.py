"""In which rounds of a period each client can take part, as its data say it."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from feddpa_jax.data.available import ranges_of, read_available
from feddpa_jax.types import AvailableTexts, UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Timetable:
    """Rounds by client; clients with the same rounds share them.

    Attributes:
      period: rounds after which all is repeated.
      first_I: the first round of each range; the ranges of one text do not overlap, int64 [I].
      last_I: its last round, int64 [I].
      text_I: whose it is of U texts, ascending, int64 [I]; each text has a range.
      code_C: each client's text, int32 [C].
    """

    period: int
    first_I: np.ndarray
    last_I: np.ndarray
    text_I: np.ndarray
    code_C: np.ndarray

    def of(self, places: np.ndarray) -> "Timetable":
        """The same of some clients."""
        return dataclasses.replace(self, code_C=self.code_C[places])

    def there(self, round_number: int) -> np.ndarray:
        """Which clients can take part in a round: bool [C]."""
        now = round_number % self.period
        on_U = np.zeros(int(self.text_I[-1]) + 1, bool)
        on_U[self.text_I[(self.first_I <= now) & (now <= self.last_I)]] = True
        return on_U[self.code_C]

    def counts(self) -> np.ndarray:
        """How many clients can take part in each round of a period: int64 [period]."""
        clients_U = np.bincount(self.code_C, minlength=int(self.text_I[-1]) + 1)
        change_T = np.zeros(self.period + 1, np.int64)
        np.add.at(change_T, self.first_I, clients_U[self.text_I])
        np.add.at(change_T, self.last_I + 1, -clients_U[self.text_I])
        return np.cumsum(change_T[:-1])


def make_timetable(said: AvailableTexts, names: Sequence[str], period: int) -> Timetable:
    """When each client can take part.

    Args:
      said: what the clients' examples say (`data/available.py`).
      names: of the clients, for messages.
      period: rounds of a day.

    Raises:
      UserError: a client says nothing, no rounds, or a round that the period does not have.

    >>> said = AvailableTexts(("8-17", "22-1"), np.array([0, 1, 1], np.int32))
    >>> table = make_timetable(said, ["anna", "ben", "cara"], 24)
    >>> table.there(25).tolist(), table.counts()[[7, 8, 23]].tolist()
    ([False, True, True], [0, 1, 2])
    """
    ranges: list[tuple[int, int, int]] = []
    code_U, client_U, code_C = np.unique(said.code_C, return_index=True, return_inverse=True)
    for number, (code, client) in enumerate(zip(code_U.tolist(), client_U.tolist(), strict=True)):
        text, name = said.texts[code], names[int(client)]
        if not text:
            raise _silent(name, anybody=any(said.texts))
        given = ranges_of(read_available(text, f"client {name!r}"))
        if (most := max(map(max, given))) >= period:
            raise UserError(
                f"fed.availability: client {name!r} is available {text!r}, and round {most} is "
                f"none of a period of {period}, from 0 to {period - 1}; correct it, or set "
                f"fed.availability_period to {most + 1} or more"
            )
        ranges += [(*own, number) for own in _apart(given, period)]
    first_I, last_I, text_I = np.array(ranges, np.int64).T
    return Timetable(period, first_I, last_I, text_I, code_C.astype(np.int32))


def _silent(name: str, *, anybody: bool) -> UserError:
    if anybody:
        return UserError(
            f"fed.availability: column, and no record of client {name!r} says when it is "
            'available; give it rounds, such as "8-17"'
        )
    return UserError(
        "fed.availability: column, and the data do not say when clients are available; name the "
        "column that does with data.columns, such as {available: hours}"
    )


def _apart(given: Sequence[tuple[int, int]], period: int) -> list[tuple[int, int]]:
    """The same rounds in ranges that do not overlap, and none of which goes over the day's end."""
    parts: list[tuple[int, int]] = []
    for first, last in given:
        parts += [(first, last)] if first <= last else [(first, period - 1), (0, last)]
    found: list[tuple[int, int]] = []
    for first, last in sorted(parts):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found
