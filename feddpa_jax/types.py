"""The dimension key, and the few types that every part of the package shares.

Arrays carry their dimensions as a suffix, and einsums use the same letters:

    C clients           U local updates     B rows            T query tokens
    S key tokens        P response positions (flat)           V vocabulary
    L layers            D width             N query heads     K key/value heads
    G = N/K             H head size         F ffn             R rank
    M support           E output width of a linear map

Trees carry their leading axes only: `local_C` is a tree whose leaves all start with a client axis.
"""

import abc
import dataclasses
import zlib
from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np

from feddpa_jax.short_repr import short_repr


class UserError(ValueError):
    """An error that the user can fix; the message is one line that names it and the remedy.

    >>> raise UserError("fed.rounds: is 0; give at least 1")
    Traceback (most recent call last):
      ...
    feddpa_jax.types.UserError: fed.rounds: is 0; give at least 1
    """


class Turn(NamedTuple):
    """One turn of a conversation.

    Attributes:
      role: who speaks: "system", "user" or "assistant".
      text: what is said.
    """

    role: str
    text: str


@dataclasses.dataclass(frozen=True)
class Example:
    """One instruction and its answer; of a conversation, the last ones.

    Attributes:
      instruction: what the model is asked.
      output: the answer that is trained on, or compared with.
      input: optional context of the instruction.
      task: name of the task; scores are averaged within a task.
      category: the task's family, for reports.
      history: the turns before the instruction, in their order; the assistant's are trained on too.
      available: when its client can take part, such as "8-17,20" (`data/available.py`); all of a
        client's examples say the same, or nothing.

    >>> Example("Add.", "3", input="1 and 2", task="sums").task
    'sums'
    """

    instruction: str
    output: str
    input: str = ""
    task: str = ""
    category: str = ""
    history: tuple[Turn, ...] = ()
    available: str = ""


class AvailableTexts(NamedTuple):
    """What clients' examples say of when the clients can take part.

    Attributes:
      texts: U texts that differ; one that is empty says nothing.
      code_C: each client's text, an index into these, int32.
    """

    texts: tuple[str, ...]
    code_C: np.ndarray


@dataclasses.dataclass(frozen=True)
class Client:
    """A client's name and its private examples: those it trains on, and those it holds out.

    Attributes:
      name: it serves as a folder's name too, and as the task of examples that name none.
      train: what it trains on; any iterable, kept as a tuple.
      validation: what it holds out, for choosing weighting rules; likewise.

    >>> Client("anna", train=(Example("Say hi.", "hi", task="greet"), Example("Go.", "no"))).tasks
    ('anna', 'greet')
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        """Makes tuples of lists, and gives examples without a task one."""
        object.__setattr__(self, "train", tuple(map(self._with_task, self.train)))
        object.__setattr__(self, "validation", tuple(map(self._with_task, self.validation)))

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        held = len(self.validation) or None
        return short_repr(self, name=self.name, train=len(self.train), validation=held)

    def _with_task(self, example: Example) -> Example:
        untold = isinstance(example, Example) and example.task == ""
        return dataclasses.replace(example, task=self.name) if untold else example

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the client's own training data, sorted."""
        return tuple(sorted({example.task for example in self.train}))

    @property
    def available(self) -> str:
        """When the client can take part, as its examples say it; empty if none does.

        Raises:
          UserError: two of them say different things.
        """
        own = (*self.train, *self.validation)
        said = list(dict.fromkeys(one.available for one in own if one.available))
        if len(said) > 1:
            raise differ(self.name, *said[:2])
        return said[0] if said else ""


def differ(name: str, one: str, other: str) -> UserError:
    """The error of a client whose examples disagree on when it can take part."""
    return UserError(
        f"data.columns: client {name!r} is available {one!r} in one record and {other!r} in "
        "another; give all of a client's records the same value"
    )


class ClientSequence(Sequence[Client]):
    """Clients that are read as they are asked for.

    Attributes:
      names: the clients' names, in order.
    """

    names: tuple[str, ...]

    @abc.abstractmethod
    def read(self, place: int) -> Client:
        """The client at a place, counted from 0.

        Raises:
          UserError: it cannot be read any more.
        """

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        return short_repr(self, clients=len(self))

    def available(self) -> AvailableTexts:
        """What is said of when the clients can take part; here, all of them are read."""
        return texts_of([client.available for client in self])

    def __len__(self) -> int:
        """The number of clients."""
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Client: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Client, ...]: ...

    def __getitem__(self, place: int | slice) -> Client | tuple[Client, ...]:
        """A client, or several.

        Raises: as of `read`.
        """
        if isinstance(place, slice):
            return tuple(self[i] for i in range(*place.indices(len(self))))
        return self.read(range(len(self))[place])


class SomeClients(ClientSequence):
    """Some clients of a sequence, read as they are asked for.

    Attributes:
      whole: the sequence.
      names: the names of those that are meant.

    >>> anna, ben = Client("anna", ()), Client("ben", ())
    >>> some = SomeClients((anna, ben), [1])
    >>> some.names, some[0].name, len(some)
    (('ben',), 'ben', 1)
    """

    def __init__(self, clients: Sequence[Client], members: Sequence[int] | np.ndarray):
        """Args: the clients, and the indexes of those that are meant."""
        names = names_of(clients)
        self.whole, self._members = clients, [int(c) for c in members]
        self.names = tuple(names[c] for c in self._members)

    def read(self, place: int) -> Client:
        """A client."""
        return self.whole[self._members[place]]

    def available(self) -> AvailableTexts:
        """As of the sequence."""
        texts, code_C = available_of(self.whole)
        return AvailableTexts(texts, code_C[self._members])


def texts_of(said: Sequence[str]) -> AvailableTexts:
    """Each client's text, as an index into those that differ.

    >>> texts, code_C = texts_of(["8-17", "", "8-17"])
    >>> texts, code_C.tolist()
    (('8-17', ''), [0, 1, 0])
    """
    codes: dict[str, int] = {}
    found = [codes.setdefault(text, len(codes)) for text in said]
    return AvailableTexts(tuple(codes), np.array(found, np.int32))


def available_of(clients: Sequence[Client]) -> AvailableTexts:
    """What clients' examples say of when the clients can take part.

    Raises:
      UserError: those of one client disagree.
    """
    if isinstance(clients, ClientSequence):
        return clients.available()
    return texts_of([client.available for client in clients])


def names_of(clients: Sequence[Client]) -> tuple[str, ...]:
    """The clients' names; none that is not in memory is read."""
    if isinstance(clients, ClientSequence):
        return clients.names
    return tuple(client.name for client in clients)


def client_id(name: str) -> int:
    """A number that follows from a client's name alone; its randomness follows from it."""
    return zlib.crc32(name.encode())


class Source(NamedTuple):
    """Where a federation was loaded from: the arguments of `load_federation`.

    `columns` are pairs of our name and the data's, sorted.
    """

    path: str
    seed: int
    max_train: int | None
    validation: int
    max_test: int | None
    columns: tuple[tuple[str, str], ...] = ()
    test_path: str | None = None


@dataclasses.dataclass(frozen=True)
class Federation:
    """All clients, and the test instances of all tasks together.

    Attributes:
      clients: the clients, whose names differ; any iterable, kept as a tuple unless it is a
        `ClientSequence`, which reads clients as they are asked for.
      test: instances, each with the name of its task.
      source: where they were loaded from; None for a federation that was made in memory.

    >>> anna = Client("anna", train=(Example("Say hi.", "hi", task="greet"),))
    >>> Federation(clients=(anna,), test=(Example("Say ho.", "ho", task="greet"),)).clients[0].tasks
    ('greet',)
    """

    clients: Sequence[Client]
    test: tuple[Example, ...] = ()
    source: Source | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Makes tuples of lists."""
        if not isinstance(self.clients, ClientSequence):
            object.__setattr__(self, "clients", tuple(self.clients))
        object.__setattr__(self, "test", tuple(self.test))

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        path = self.source and self.source.path
        return short_repr(self, clients=len(self.clients), test=len(self.test), path=path)

    @property
    def names(self) -> tuple[str, ...]:
        """The clients' names."""
        return names_of(self.clients)


class TokenizedExample(NamedTuple):
    """Token ids of a prompt and its response (end token included).

    Attributes:
      tokens_T: the ids, int32.
      prompt_length: how many of them are the prompt's.
      trained_T: the tokens that training's loss is on, bool, where these are more than the
        response: those of earlier answers in the prompt. None where the response is all.
    """

    tokens_T: np.ndarray
    prompt_length: int
    trained_T: np.ndarray | None = None
