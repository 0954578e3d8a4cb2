"""A glimpse of large data that no cache holds yet: all clients' names, few's examples.

Of a file, the columns of clients and of when they are available are gone through alone, which takes
seconds where reading all of it takes minutes; then the examples of some clients are read. Of a
folder of clients, the folders of some are. So it serves a preflight.
"""

import itertools
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.data.available import read_available, spread
from feddpa_jax.data.client_folders import (
    FOLDER,
    client_folder,
    client_places,
    refuse_beside_clients,
)
from feddpa_jax.data.columns import Columns
from feddpa_jax.data.hub import client_column, read_splits
from feddpa_jax.data.opened import Cache, uncached
from feddpa_jax.data.records import check_client_name, to_example
from feddpa_jax.data.selection import Selection
from feddpa_jax.data.tables import KINDS, holds_list, stream_table
from feddpa_jax.files.json_list import glance_at_list
from feddpa_jax.files.strict_json import parse_json
from feddpa_jax.types import (
    AvailableTexts,
    Client,
    ClientSequence,
    Example,
    UserError,
    differ,
    texts_of,
)


class FewClients(ClientSequence):
    """Clients of whom all names are known, and some of whom were read.

    Attributes:
      names: of all.
      some: those that were read, by place.
      said: when each of all is available; None where that is not known.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        some: Mapping[int, Client],
        said: AvailableTexts | None = None,
    ):
        """Args: the names, the clients that were read, and when all are available."""
        self.names, self.some, self.said = names, some, said

    def read(self, place: int) -> Client:
        """A client that was read."""
        return self.some[place]

    def available(self) -> AvailableTexts:
        """When each is available.

        Raises:
          KeyError: it is not known.
        """
        if self.said is None:
            raise KeyError("available")
        return self.said


class Glimpse(NamedTuple):
    """What a glimpse shows: the clients, and the first of the test instances."""

    clients: FewClients
    test: tuple[Example, ...]


class Most(NamedTuple):
    """About how many training examples are read, and at most how many test instances."""

    examples: int
    tests: int


def glimpse(
    path: str,
    selection: Selection,
    order: Callable[[Sequence[str]], list[int]],
    most: Most,
    *,
    cache: Cache = "auto",
    columns: Mapping[str, str] | None = None,
) -> Glimpse | None:
    """Some clients of data that would first be read into the cache.

    Args:
      path: as of `load_federation`.
      selection: which of its examples each client trains on.
      order: the places of the clients in the order in which they are read, from all their names.
      most: how much is read.
      cache: as of `load_federation`.
      columns: the data's name of a column by ours (`data.columns`).

    Returns:
      None where the data need not be read into the cache, are no such file or folder, or have
      something wrong, which loading them says.

    Raises:
      UserError: a client would hold out all that it has, or one of those read has a bad record.
    """
    place = uncached(path, cache, columns)
    if place is None:
        return None
    if place.is_dir():
        return _of_folder(place, selection, order, most, columns)
    return _of_file(place, path, selection, order, most, columns)


def _of_folder(
    folder: Path,
    selection: Selection,
    order: Callable[[Sequence[str]], list[int]],
    most: Most,
    columns: Mapping[str, str] | None,
) -> Glimpse:
    refuse_beside_clients(folder, ("test", "local"), all_lines=False)
    refuse_beside_clients(folder / FOLDER, ("train", "test"), all_lines=True)
    places = client_places(folder / FOLDER)
    names = tuple(place.name for place in places)
    some: dict[int, Client] = {}
    test: list[Example] = []
    count = 0
    for place in order(names):
        if count >= most.examples:
            break
        client, tests = client_folder(places[place], columns)
        some[place] = selection.of(client.name, client.train)
        count += len(some[place].train)
        test += tests
    said = None
    if len(some) == len(names):
        said = texts_of([some[place].available for place in range(len(names))])
    return Glimpse(FewClients(names, some, said), tuple(test[: most.tests]))


def _of_file(
    file: Path,
    path: str,
    selection: Selection,
    order: Callable[[Sequence[str]], list[int]],
    most: Most,
    columns: Mapping[str, str] | None,
) -> Glimpse | None:
    try:
        given, code_I, said = _go_through(file, path, client_column(path), columns or {})
    except (ValueError, KeyError, TypeError, AttributeError):  # A UserError is a ValueError.
        return None
    if not given:
        return None
    order_C = sorted(range(len(given)), key=given.__getitem__)
    names = tuple(given[code] for code in order_C)
    size_C = np.bincount(code_I, minlength=len(given))[order_C]
    places = sorted(_first(order(names), selection.counts(names, size_C), most.examples))
    wanted_C = np.zeros(len(given), bool)
    wanted_C[[order_C[place] for place in places]] = True
    examples: dict[int, list[Example]] = {order_C[place]: [] for place in places}
    own = Columns(columns)
    for number, record in _rows(file, wanted_C[code_I]):
        code = int(code_I[number])
        source = f"{path}, record {number + 1}"
        examples[code].append(to_example(record, source, task=given[code], columns=own))
    some = {}
    for place in places:
        own_examples = spread(names[place], examples[order_C[place]])
        some[place] = selection.of(names[place], own_examples)
    tests = read_splits(path, columns, streamed=True).tests()
    when = texts_of([said.get(code, "") for code in order_C])
    return Glimpse(FewClients(names, some, when), tuple(itertools.islice(tests, most.tests)))


def _first(order: Sequence[int], counts_C: np.ndarray, most: int) -> list[int]:
    """The first clients, with about so many examples together."""
    before = np.cumsum(counts_C[order]) - counts_C[order]
    return list(order[: int(np.searchsorted(before, most))])


def _go_through(
    file: Path, path: str, column: str, columns: Mapping[str, str]
) -> tuple[list[str], np.ndarray, dict[int, str]]:
    """The clients in the order of their first records, each record's, and when they are available.

    Raises:
      ValueError, KeyError, TypeError, AttributeError: something is wrong.
    """
    asked = (column, *([columns["available"]] if "available" in columns else []))
    codes: dict[str, int] = {}
    code_I = array("i")
    said: dict[int, str] = {}
    for value, *more in _values(file, asked):
        code = codes.setdefault(_name(value, path), len(codes))
        code_I.append(code)
        text = read_available(more[0], path) if more else ""
        if text and said.setdefault(code, text) != text:
            raise differ(str(value), said[code], text)
    return list(codes), np.asarray(code_I), said


def _name(value: Any, source: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{source}: {value!r} is no client's name")
    return check_client_name(str(value), source)


def _values(file: Path, asked: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Every record's values of some columns."""
    kind, separator = KINDS[file.suffix.lower()]
    if kind == "parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(columns=list(asked)):
                yield from zip(*(batch.column(name).to_pylist() for name in asked), strict=True)
        return
    if kind == "csv":
        records: Iterator[Any] = iter(stream_table(file, kind, separator=separator).records)
    elif holds_list(file):
        records = (value for value, _ in glance_at_list(file))
    else:
        records = _glance_at_lines(file)
    yield from (tuple(record[name] for name in asked) for record in records)


def _glance_at_lines(file: Path) -> Iterator[Any]:
    with file.open("rb") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _rows(file: Path, wanted_I: np.ndarray) -> Iterator[tuple[int, Any]]:
    """The wanted records, with their numbers from 0."""
    kind, separator = KINDS[file.suffix.lower()]
    if kind != "json":
        records = stream_table(file, kind, separator=separator).records
        yield from (pair for pair in enumerate(records) if wanted_I[pair[0]])
        return
    if holds_list(file):
        for number, (_, text) in enumerate(glance_at_list(file)):
            if wanted_I[number]:
                yield number, parse_json(text, str(file), finite=False)
        return
    with file.open("rb") as lines:
        there = (pair for pair in enumerate(lines, start=1) if pair[1].strip())
        for number, (line, text) in enumerate(there):
            if wanted_I[number]:
                value = text.decode("utf-8-sig" if line == 1 else "utf-8")
                yield number, parse_json(value, str(file), line=line, finite=False)
