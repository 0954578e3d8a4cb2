"""When a client can take part, as a column of the data says it: rounds of a day.

A value names rounds from 0, within a period of `fed.availability_period` rounds that is repeated:

    "8-17,20"   in rounds 8 to 17, both included, and in round 20
    "22-5"      from round 22 over the end of the period to round 5
    20, [8, 9]  a whole number, or a list of numbers and texts

As the traces of devices that Lai, Dai, Singapuram, Liu, Zhu, Madhyastha, Chowdhury: *FedScale*,
ICML 2022, arXiv 2105.11367, replay modulo their length: intervals in which a device is there.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from feddpa_jax.types import Client, Example, UserError

# As `fed.availability_period`, whose rounds they are.
MOST_ROUNDS = 10_000
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def read_available(value: Any, source: str) -> str:
    """A value of the column, as a text; empty where there is none.

    Args:
      value: what was read.
      source: file and line, for messages.

    Raises:
      UserError: it names no rounds.

    >>> read_available([8, "9 - 17", 20], "here")
    '8,9-17,20'
    """
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return ""
    parts = list(value) if isinstance(value, list | tuple) else [value]
    if not parts or not all(_is_part(part) for part in parts):
        raise _none(value, source)
    text = re.sub(r" *([,-]) *", r"\1", ",".join(str(part).strip() for part in parts))
    try:
        ranges_of(text)
    except ValueError:
        raise _none(value, source) from None
    return text


def _is_part(part: Any) -> bool:
    return isinstance(part, str | int) and not isinstance(part, bool)


def _none(value: Any, source: str) -> UserError:
    return UserError(
        f"{source}: says that its client is available {value!r}, which names no rounds; write them "
        'as "8-17,20"'
    )


def ranges_of(text: str) -> list[tuple[int, int]]:
    """The first and the last round of each range; a last one before the first is of the next day.

    Raises:
      ValueError: a range is none.

    >>> ranges_of("8-17,20")
    [(8, 17), (20, 20)]
    """
    found = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(part)
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if max(first, last) >= MOST_ROUNDS:
            raise ValueError(part)
        found.append((first, last))
    return found


def spread(name: str, examples: Sequence[Example]) -> tuple[Example, ...]:
    """A client's examples, which all say when it can take part if one of them does.

    So what is chosen among them says it too.

    Raises:
      UserError: two say different things.
    """
    said = Client(name, tuple(examples)).available
    if not said:
        return tuple(examples)
    return tuple(dataclasses.replace(one, available=said) for one in examples)
