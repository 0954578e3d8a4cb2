"""Which of its examples a client trains on, and which it holds out."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from feddpa_jax.types import Client, Example, UserError, client_id


@dataclasses.dataclass(frozen=True)
class Selection:
    """A choice among each client's examples, by its name and the seed alone.

    Attributes:
      max_train: most examples of a client, held-out ones included; None: all.
      validation: how many of these it holds out.
      seed: of both choices.

    >>> own = [Example(f"Say {word}.", word) for word in "abcd"]
    >>> chosen = Selection(max_train=3, validation=1, seed=0).of("anna", own)
    >>> len(chosen.train), len(chosen.validation)
    (2, 1)
    """

    max_train: int | None = None
    validation: int = 0
    seed: int = 0

    def of(self, name: str, examples: Sequence[Example]) -> Client:
        """A client with what is chosen of its examples; both parts keep their order.

        Raises:
          UserError: what it holds out leaves nothing to train on.
        """
        chosen = some(examples, self.max_train, self.seed, name)
        check_held_out(name, len(chosen), self.validation)
        if not self.validation:
            return Client(name, chosen)
        # 1 sets this draw apart from that of `max_train`.
        rng = np.random.default_rng([self.seed, client_id(name), 1])
        held = set(rng.permutation(len(chosen))[: self.validation].tolist())
        return Client(
            name,
            tuple(e for i, e in enumerate(chosen) if i not in held),
            tuple(chosen[i] for i in sorted(held)),
        )

    def counts(self, names: Sequence[str], given_C: np.ndarray) -> np.ndarray:
        """How many examples each client trains on, of so many that it has: int64 [C].

        Raises:
          UserError: what a client holds out leaves nothing to train on.
        """
        left_C = given_C if self.max_train is None else np.minimum(given_C, self.max_train)
        short = np.flatnonzero(left_C <= self.validation)
        if len(short):
            check_held_out(names[int(short[0])], int(left_C[short[0]]), self.validation)
        return left_C - self.validation


def some(
    examples: Sequence[Example], most: int | None, seed: int, name: str
) -> tuple[Example, ...]:
    """At most so many of some examples, chosen by a name and the seed; their order stays."""
    if most is None or len(examples) <= most:
        return tuple(examples)
    rng = np.random.default_rng([seed, client_id(name)])
    return tuple(examples[i] for i in np.sort(rng.permutation(len(examples))[:most]))


def some_per_task(
    examples: tuple[Example, ...], most: int | None, seed: int
) -> tuple[Example, ...]:
    """At most so many test instances of each task; their order stays."""
    by_task: dict[str, list[Example]] = {}
    for example in examples:
        by_task.setdefault(example.task, []).append(example)
    kept = {id(e) for task, own in by_task.items() for e in some(own, most, seed, task)}
    return tuple(example for example in examples if id(example) in kept)


def check_held_out(name: str, count: int, validation: int) -> None:
    """Refuses to hold out all that a client has.

    Raises:
      UserError: names the client.
    """
    if count <= validation:
        raise UserError(
            f"data.validation: client {name!r} has {count} training examples, and "
            f"{validation} held out leave none to train on; lower it below {count}"
        )
