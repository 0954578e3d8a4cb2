"""A federation that is opened, not loaded: examples lie in Arrow files and are read by client.

A population's folder holds

- `train.arrow`, `test.arrow`: examples, a column a field, in batches of `BATCH` rows, in the order
  in which they came (`datasets.Dataset.from_file` reads them too);
- `clients.arrow`: the clients' names, in order, a checksum of each client's examples, and, if any
  says it, when the client can take part (`data/available.py`);
- `rows.npy`, `first.npy`: the numbers of the rows by client, and where each client's begin;
- `population.json`: counts, digest and sizes of the others. It is written last.

Files are mapped into memory, so what is not asked for is not read; a client that is read is
compared with its checksum.
"""

import contextlib
import copy
import dataclasses
import functools
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from feddpa_jax.data.mapped_files import open_array, read_table
from feddpa_jax.data.records import check_client_name
from feddpa_jax.data.seal import UnsealedError, unseal, what_is_wrong
from feddpa_jax.data.selection import Selection
from feddpa_jax.files.disk import sha256
from feddpa_jax.files.problems import reason
from feddpa_jax.short_repr import short_repr
from feddpa_jax.types import (
    AvailableTexts,
    Client,
    ClientSequence,
    Example,
    SomeClients,
    Turn,
    UserError,
)

SEAL = "population.json"
VERSION = 1
# Rows of an Arrow batch: a row's batch follows from its number.
BATCH = 2**14
# The turns of a conversation come last; when a client can take part is said once a client.
FIELDS = tuple(one.name for one in dataclasses.fields(Example) if one.name != "available")
assert FIELDS[-1] == "history"


class Population(ClientSequence):
    """The clients of a population's folder, read one by one as they are asked for.

    Attributes:
      folder: where the files are.
      selection: which of its examples each client trains on and holds out.
      digest: of all names and examples.
      cached: it is made of other data, and is made anew by the next command if it is damaged.

    Example:
      ```
      write_population(Path("people"), ((name, example) for name, example in records))
      data = load_federation("people")
      print(len(data.clients), data.clients[41_723].train[0])
      ```
    """

    def __init__(
        self,
        folder: Path,
        selection: Selection = Selection(),  # noqa: B008 - it cannot change.
        *,
        cached: bool = False,
    ):
        """Opens a folder.

        Raises:
          UserError: it holds no population, a file of it is missing or of another size, that of
            clients or of tests has changed, or a client's name is none.
        """
        self.folder = folder
        self.selection = selection
        self.cached = cached
        try:
            about = unseal(folder / SEAL, VERSION)
            for name, digest in about["sha256"].items():
                if sha256(folder / name) != digest:
                    raise UnsealedError(f"{name} has changed")
            self.digest: str = about["digest"]
            self._batches = _Batches(read_table(folder / "train.arrow"))
            clients = read_table(folder / "clients.arrow")
            self.names = tuple(clients.column("name").to_pylist())
            self._sum_C = clients.column("sum").to_numpy()
            self._available = _available(clients)
            self._rows = open_array(folder / "rows.npy")
            self._first = open_array(folder / "first.npy")
        except UnsealedError as error:
            raise self._damaged(f"is no whole population ({error})") from None
        except OSError as error:
            what = what_is_wrong(Path(error.filename or SEAL), error)
            raise self._damaged(f"is no whole population ({what})") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{SEAL} does not fit: {type(error).__name__} {reason(error)}"
            raise self._damaged(f"is no whole population ({what})") from None
        for name in self.names:
            check_client_name(name, str(folder))
        # Refuses at once what no client may hold out.
        self.counts_C = selection.counts(self.names, np.diff(self._first))

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        examples, place = len(self._rows), str(self.folder)
        return short_repr(self, clients=len(self), examples=examples, folder=place)

    def read(self, place: int) -> Client:
        """A client with its examples.

        Raises:
          UserError: its examples are damaged, or were changed since the population was written.
        """
        rows = self._rows[self._first[place] : self._first[place + 1]]
        try:
            examples = list(_rows(self._batches, rows))
            whole = functools.reduce(add_to_sum, examples, 0) == self._sum_C[place]
            if said := self._available.texts[self._available.code_C[place]]:
                examples = [dataclasses.replace(one, available=said) for one in examples]
        except (ValueError, IndexError, TypeError, SystemError):  # No text, JSON or row any more.
            examples, whole = [], False
        if not whole:
            what = f"the examples of client {self.names[place]!r} are damaged or changed"
            raise self._damaged(what)
        return self.selection.of(self.names[place], examples)

    def available(self) -> AvailableTexts:
        """What is said of when the clients can take part; no client is read."""
        return self._available

    def _damaged(self, what: str) -> UserError:
        """The error that says so; what is cached is not opened again."""
        if not self.cached:
            return UserError(f"{self.folder}: {what}; write it again")
        with contextlib.suppress(OSError):
            (self.folder / SEAL).unlink(missing_ok=True)
        return UserError(f"{self.folder}: {what}; start the command again, which makes it anew")

    def choosing(self, selection: Selection) -> "Population":
        """The same population with another choice among each client's examples."""
        found = copy.copy(self)
        found.selection = selection
        found.counts_C = selection.counts(self.names, np.diff(self._first))
        return found

    def test(self) -> tuple[Example, ...]:
        """The test instances."""
        try:
            table = read_table(self.folder / "test.arrow")
            return tuple(_rows(_Batches(table), np.arange(table.num_rows)))
        except (UnsealedError, ValueError, IndexError, TypeError, SystemError):
            raise self._damaged("the test instances are damaged") from None


def _available(clients: Any) -> AvailableTexts:
    """The column of a table of clients; without it, nothing is said."""
    if "available" not in clients.column_names:
        return AvailableTexts(("",), np.zeros(clients.num_rows, np.int32))
    found = clients.column("available").combine_chunks().dictionary_encode()
    return AvailableTexts(tuple(found.dictionary.to_pylist()), found.indices.to_numpy())


def held_out_counts(clients: Sequence[Client]) -> list[int]:
    """How many examples each client holds out; no client of a population is read.

    >>> held_out_counts([Client("anna", (), [Example("Say yes.", "yes")])])
    [1]
    """
    known: Any = clients.whole if isinstance(clients, SomeClients) else clients
    if isinstance(known, Population):
        return [known.selection.validation] * len(clients)
    return [len(client.validation) for client in clients]


def is_population(folder: Path) -> bool:
    """Whether a folder says that it holds a population."""
    return (folder / SEAL).is_file()


class _Batches:
    """A table's batches, each checked when it is first looked at: Arrow would not look.

    Of a batch that is damaged somewhere, rows are checked one by one: the others stay readable.
    """

    def __init__(self, table: Any):
        self._all = table.to_batches()
        self._whole: dict[int, bool] = {}

    def rows(self, place: int, at: np.ndarray) -> Any:
        """Some rows of a batch, given by their numbers, which ascend.

        Raises:
          ValueError: the offsets of one point outside of the batch, or a text is no UTF-8.
        """
        found = self._all[place]
        if place not in self._whole:
            self._whole[place] = _is_whole(found)
        if not self._whole[place]:
            for row in at.tolist():
                found.slice(row, 1).validate(full=True)
        if at[-1] - at[0] + 1 == len(at):
            return found.slice(int(at[0]), len(at))
        return found.take(at)


def _is_whole(batch: Any) -> bool:
    try:
        batch.validate(full=True)
    except ValueError:
        return False
    return True


def _rows(batches: _Batches, rows: np.ndarray) -> Iterator[Example]:
    """The examples of some rows, whose numbers ascend."""
    begin = 0
    while begin < len(rows):
        batch = int(rows[begin]) // BATCH
        end = begin + int(np.searchsorted(rows[begin:], (batch + 1) * BATCH))
        found = batches.rows(batch, np.asarray(rows[begin:end]) - batch * BATCH)
        *texts, histories = (column.to_pylist() for column in found.columns)
        yield from map(Example, *texts, map(_history, histories))
        begin = end


def add_to_sum(sum_: int, example: Example) -> int:
    """The checksum of a client's examples, with one more."""
    fields = (as_text(getattr(example, name)) for name in FIELDS)
    return zlib.crc32("\x1f".join(fields).encode(), sum_)


def as_text(value: str | tuple[Turn, ...]) -> str:
    """A field as its column has it: turns before the instruction as JSON, empty without any."""
    return value if isinstance(value, str) else json.dumps(value) if value else ""


def _history(text: str) -> tuple[Turn, ...]:
    return tuple(Turn(*turn) for turn in json.loads(text)) if text else ()
