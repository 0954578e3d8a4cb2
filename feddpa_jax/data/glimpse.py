"""A glimpse of a large file that no cache holds yet: all clients' names and sizes, few's examples.

The file is gone through for its column of clients alone, which takes seconds where reading all of
it takes minutes; then the examples of some clients are read. So it serves a preflight.
"""

import itertools
import json
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.data.columns import Columns
from feddpa_jax.data.hub import client_column, read_splits
from feddpa_jax.data.opened import Cache, uncached_file
from feddpa_jax.data.records import check_client_name, to_example
from feddpa_jax.data.selection import Selection
from feddpa_jax.data.tables import KINDS, stream_table
from feddpa_jax.files.strict_json import parse_json
from feddpa_jax.types import Client, ClientSequence, Example, UserError


class FewClients(ClientSequence):
    """Clients of whom all names are known, and some of whom were read.

    Attributes:
      names: of all.
      some: those that were read, by place.
    """

    def __init__(self, names: tuple[str, ...], some: Mapping[int, Client]):
        """Args: the names, and the clients that were read."""
        self.names, self.some = names, some

    def read(self, place: int) -> Client:
        """A client that was read."""
        return self.some[place]


class Glimpse(NamedTuple):
    """What a glimpse shows: the clients, and the first of the test instances."""

    clients: FewClients
    test: tuple[Example, ...]


def glimpse(
    path: str,
    selection: Selection,
    choose: Callable[[tuple[str, ...], np.ndarray], Collection[int]],
    *,
    cache: Cache = "auto",
    columns: Mapping[str, str] | None = None,
    most_tests: int,
) -> Glimpse | None:
    """Some clients of a file that would first be read into the cache.

    Args:
      path: as of `load_federation`.
      selection: which of its examples each client trains on.
      choose: the places of the clients to read, from all names and numbers of training examples.
      cache: as of `load_federation`.
      columns: the data's name of a column by ours (`data.columns`).
      most_tests: how many test instances are read.

    Returns:
      None where the data need not be read into the cache, are no such file, or have something
      wrong, which loading them says.

    Raises:
      UserError: a client would hold out all that it has, or one of those chosen has a bad record.
    """
    file = uncached_file(path, cache, columns)
    if file is None:
        return None
    try:
        column = client_column(path)
        codes: dict[str, int] = {}
        code_I = array("i")
        for value in _values(file, column):
            code_I.append(codes.setdefault(_name(value, path), len(codes)))
    except (ValueError, KeyError, TypeError, AttributeError):  # A UserError is a ValueError.
        return None
    if not codes:
        return None
    given = list(codes)
    order_C = sorted(range(len(given)), key=given.__getitem__)
    names = tuple(given[code] for code in order_C)
    size_C = np.bincount(np.asarray(code_I), minlength=len(given))[order_C]
    places = sorted(choose(names, selection.counts(names, size_C)))
    wanted_C = np.zeros(len(given), bool)
    wanted_C[[order_C[place] for place in places]] = True
    examples: dict[int, list[Example]] = {order_C[place]: [] for place in places}
    own = Columns(columns)
    for number, record in _rows(file, wanted_C[np.asarray(code_I)]):
        code = code_I[number]
        source = f"{path}, record {number + 1}"
        examples[code].append(to_example(record, source, task=given[code], columns=own))
    some = {place: selection.of(names[place], examples[order_C[place]]) for place in places}
    tests = read_splits(path, columns, streamed=True).tests()
    return Glimpse(FewClients(names, some), tuple(itertools.islice(tests, most_tests)))


def _name(value: Any, source: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{source}: {value!r} is no client's name")
    return check_client_name(str(value), source)


def _values(file: Path, column: str) -> Iterator[Any]:
    """Every record's value of a column."""
    kind, separator = KINDS[file.suffix.lower()]
    if kind == "csv":
        records = stream_table(file, kind, separator=separator).records
        yield from (record[column] for record in records)
    elif kind == "parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(columns=[column]):
                yield from batch.column(0).to_pylist()
    else:
        with file.open("rb") as lines:
            # A list is no object with columns, and so is refused.
            yield from (json.loads(line)[column] for line in lines if line.strip())


def _rows(file: Path, wanted_I: Sequence[bool] | np.ndarray) -> Iterator[tuple[int, Any]]:
    """The wanted records, with their numbers from 0."""
    kind, separator = KINDS[file.suffix.lower()]
    if kind != "json":
        records = stream_table(file, kind, separator=separator).records
        yield from (pair for pair in enumerate(records) if wanted_I[pair[0]])
        return
    with file.open("rb") as lines:
        there = (pair for pair in enumerate(lines, start=1) if pair[1].strip())
        for number, (line, text) in enumerate(there):
            if wanted_I[number]:
                value = text.decode("utf-8-sig" if line == 1 else "utf-8")
                yield number, parse_json(value, str(file), line=line, finite=False)
