"""The dimension key, and the few types that every part of the package shares.

Arrays carry their dimensions as a suffix, and einsums use the same letters:

    C clients           U local updates     B rows            T query tokens
    S key tokens        P response positions (flat)           V vocabulary
    L layers            D width             N query heads     K key/value heads
    G = N/K             H head size         F ffn             R rank
    M support           E output width of a linear map

Trees carry their leading axes only: `local_C` is a tree whose leaves all start with a client axis.
"""

import dataclasses
from typing import NamedTuple

import numpy as np


class UserError(ValueError):
    """An error that the user can fix; the message is one line that names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One instruction and its answer.

    Attributes:
      instruction: what the model is asked.
      output: the answer that is trained on, or compared with.
      input: optional context of the instruction.
      task: name of the task; scores are averaged within a task.
      category: the task's family, for reports.
    """

    instruction: str
    output: str
    input: str = ""
    task: str = ""
    category: str = ""


@dataclasses.dataclass(frozen=True)
class Client:
    """A client's name and its private examples: those it trains on, and those it holds out."""

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the client's own training data, sorted."""
        return tuple(sorted({example.task for example in self.train}))


@dataclasses.dataclass(frozen=True)
class Federation:
    """All clients, and the test instances of all tasks together."""

    clients: tuple[Client, ...]
    test: tuple[Example, ...]


class TokenizedExample(NamedTuple):
    """Token ids of a prompt and its response (end token included): int32 [T]."""

    tokens_T: np.ndarray
    prompt_length: int
