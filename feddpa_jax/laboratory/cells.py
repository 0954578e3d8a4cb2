"""Which clients and instances the laboratory looks at, so that its cost has a bound.

Evidence grows with cells: each client looks at each instance. With H held-out examples of each of
C clients and K tasks of T test instances, there are C * (16 + C * H + K * T) cells, where 16 are
made-up prompts: with 1,000 clients 16 million for the held-out examples alone. A training prompt
is looked at by its own client only, under four models instead of two: it counts as two cells.

Where there are more cells than allowed, a random part is looked at, which the seed decides: as many
clients as there is room for with `LEAST` held-out examples of each and `LEAST` test instances of
each of their tasks; then as many of these as there is room for.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.data.population import held_out_counts
from feddpa_jax.laboratory.choosing import AGREED
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.types import Client, Example, Federation, client_id

# Twice what an interval needs of each task.
LEAST = 8
# Local and even mix are looked at by cell, base and global adapter by instance; all four by prompt.
_OF_PROMPT = 2


class Drawn(NamedTuple):
    """What is looked at.

    Attributes:
      clients: their places, ascending.
      each: at most so many held-out examples of a client, and test instances of a task.
      tasks: those whose test instances count.
      of_clients: how many clients there are.
    """

    clients: list[int]
    each: int
    tasks: tuple[str, ...]
    of_clients: int

    def words(self) -> str:
        """What was drawn, in a sentence."""
        return (
            f"Drawn at random, as all would be too many cells: {len(self.clients):,} of "
            f"{self.of_clients:,} clients, at most {self.each:,} held-out examples of each, and at "
            f"most {self.each:,} test instances of each of {len(self.tasks):,} tasks. P and TTP "
            "are those of this part."
        )

    def to_json(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "clients": len(self.clients),
            "of_clients": self.of_clients,
            "each": self.each,
            "tasks": list(self.tasks),
            "words": self.words(),
        }


class _Sizes:
    """All clients and tasks, and how many cells a part of them has.

    Clients of a population are read where their tasks are asked for.
    """

    def __init__(self, federation: Federation, prompts_C: Sequence[int]):
        self.clients = federation.clients
        self.prompts_C = prompts_C
        self.test = Counter(example.task for example in federation.test)
        self._tasks = functools.cache(lambda c: frozenset(self.clients[c].tasks))
        self.held_C = held_out_counts(self.clients)

    def tasks(self, clients: Sequence[int]) -> tuple[str, ...]:
        """The tests' tasks that count: all with all clients, else those of the clients drawn."""
        if len(clients) == len(self.clients):
            return tuple(sorted(self.test))
        own = {task for c in clients for task in self._tasks(c)} & self.test.keys()
        return tuple(sorted(own or self.test))

    def cells(self, clients: Sequence[int], each: int) -> int:
        return self.without_tests(clients, each) + len(clients) * sum(
            min(self.test[task], each) for task in self.tasks(clients)
        )

    def without_tests(self, clients: Sequence[int], each: int) -> int:
        """The cells of made-up prompts, held-out examples and training prompts."""
        held = sum(min(self.held_C[c], each) for c in clients)
        prompts = _OF_PROMPT * sum(self.prompts_C[c] for c in clients)
        return len(clients) * (AGREED + held) + prompts

    def largest(self) -> int:
        """The most held-out examples of a client, or test instances of a task."""
        return max([*self.held_C, *self.test.values(), 1])


def draw(federation: Federation, prompts_C: Sequence[int], *, most: int, seed: int) -> Drawn | None:
    """A part of a federation that has no more than so many cells.

    A single client is looked at even where it has more, with `LEAST` of each.

    Args:
      federation: clients and test instances.
      prompts_C: how many training prompts each client has.
      most: how many cells there may be.
      seed: of the draw.

    Returns:
      None if there are no more than that: all is looked at.

    >>> yes = Example("Say yes.", "yes", task="say")
    >>> clients = [Client(str(c), [yes], [yes] * 16) for c in range(100)]
    >>> federation = Federation(tuple(clients), (yes,) * 100)
    >>> draw(federation, [1] * 100, most=1_000_000, seed=0) is None
    True
    >>> found = draw(federation, [1] * 100, most=10_000, seed=0)
    >>> len(found.clients), found.each
    (33, 8)
    """
    sizes = _Sizes(federation, prompts_C)
    largest, count = sizes.largest(), len(federation.clients)
    if sizes.cells(range(count), largest) <= most:
        return None
    order = np.random.default_rng([seed, 4]).permutation(count).tolist()

    def most_of(low: int, high: int, fits) -> int:
        """The largest from low to high that fits; low if none does."""
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low

    # What does not even fit without its tests is not read for its tasks.
    room = most_of(1, count, lambda n: sizes.without_tests(order[:n], LEAST) <= most)
    clients = most_of(1, room, lambda n: sizes.cells(order[:n], LEAST) <= most)
    chosen = sorted(order[:clients])
    each = most_of(LEAST, max(largest, LEAST), lambda n: sizes.cells(chosen, n) <= most)
    return Drawn(chosen, each, sizes.tasks(chosen), count)


def part_of(prepared: Prepared, drawn: Drawn, places: Sequence[int], *, seed: int) -> Prepared:
    """What was drawn of a run, as if nothing else were there.

    Args:
      prepared: base, clients, tokenized training examples.
      drawn: which part.
      places: its clients among those of `prepared`.
      seed: of the instances' draw.
    """
    federation = prepared.federation

    def some(examples: Sequence[Example], name: str, kind: int) -> tuple[Example, ...]:
        if len(examples) <= drawn.each:
            return tuple(examples)
        rng = np.random.default_rng([seed, client_id(name), kind])
        found = rng.choice(len(examples), drawn.each, replace=False)
        return tuple(examples[i] for i in sorted(found))

    part = prepared.of(places)
    clients = part.federation.clients
    smaller = Federation(
        tuple(Client(own.name, own.train, some(own.validation, own.name, 5)) for own in clients),
        tuple(
            example
            for task in drawn.tasks
            for example in some([e for e in federation.test if e.task == task], task, 6)
        ),
        federation.source,
    )
    return part._replace(federation=smaller)
