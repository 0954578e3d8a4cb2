"""Writes populations (`data/population.py`), from examples that come in any order and number."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from feddpa_jax.data.available import read_available
from feddpa_jax.data.digest import digest_of_parts
from feddpa_jax.data.made_examples import check_example, check_tests
from feddpa_jax.data.population import BATCH, FIELDS, SEAL, VERSION, add_to_sum, as_text
from feddpa_jax.data.records import check_client_name
from feddpa_jax.data.seal import seal
from feddpa_jax.files.disk import aside_of, discard, sha256, sync_tree, writing
from feddpa_jax.files.escape import short
from feddpa_jax.types import Example, UserError, differ


def write_population(
    folder: Path | str,
    examples: Iterable[tuple[str, Example]],
    test: Iterable[Example] = (),
    *,
    by_name: bool = True,
    told: Callable[[int], None] = lambda rows: None,
) -> None:
    """Writes a population into a folder; `load_federation(folder)` opens it.

    Args:
      folder: new, or empty; it is there whole or not at all.
      examples: a client's name and an example of it, in any order; they are not kept in memory. One
        that names no task has the client's name as its task.
      test: test instances, each with its task.
      by_name: the clients are in the order of their names; else in that of their first examples.
      told: called with the number of examples of every batch that is written.

    Raises:
      UserError: the folder is not empty or cannot be written, there is no client, one has a name
        that is no folder's or examples that disagree on when it can take part, or two have names
        that differ in case alone; an example has an empty or wrong field, or a test instance no
        task.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a new folder")
    aside = aside_of(folder)
    with writing(folder):
        discard(aside)
        aside.mkdir(parents=True)
        try:
            tests = check_tests(test, "test: instance")
            fill(aside, _checked(examples), tests, by_name=by_name, told=told)
            sync_tree(aside)
        except BaseException:
            discard(aside)
            raise
        if folder.is_dir():
            folder.rmdir()
        aside.rename(folder)


def fill(
    folder: Path,
    examples: Iterable[tuple[str, Example]],
    test: Iterable[Example],
    *,
    by_name: bool = True,
    told: Callable[[int], None] = lambda rows: None,
) -> None:
    """Writes a population's files into an empty folder; otherwise as `write_population`.

    The examples are as `to_example` gives them: checked, and with a task.

    Raises:
      UserError: as there.
      OSError: something cannot be written.
    """
    noted = _Noted(told)
    count = _write(folder / "train.arrow", noted.passed(examples))
    if not count:
        raise UserError("data.path: there is no client; name data with examples")
    given = list(noted.codes)
    _refuse_twice(given)
    order_C = sorted(range(len(given)), key=given.__getitem__) if by_name else range(len(given))
    place_C = np.empty(len(given), np.int32)
    place_C[list(order_C)] = np.arange(len(given), dtype=np.int32)
    place_I = place_C[noted.code_of_each()]
    rows = np.argsort(place_I, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(place_I, minlength=len(given)))])
    np.save(folder / "rows.npy", rows.astype(np.int64))
    np.save(folder / "first.npy", first.astype(np.int64))
    _write_clients(folder / "clients.arrow", noted.columns(), order_C)
    tests = _write(folder / "test.arrow", test)
    files = ("train.arrow", "test.arrow", "clients.arrow", "rows.npy", "first.npy")
    sums_of = {name: sha256(folder / name) for name in files}
    about = {
        "clients": len(given),
        "examples": count,
        "tests": tests,
        "digest": digest_of_parts(digest.encode() for digest in sums_of.values()),
        # Examples are compared when they are read; these at once.
        "sha256": {name: sums_of[name] for name in ("clients.arrow", "test.arrow", "first.npy")},
    }
    seal(folder / SEAL, VERSION, files, about)


class _Noted:
    """What is noted of examples while they are written.

    Attributes:
      codes: the clients' numbers, in the order of their first examples.
      sums: by client, a checksum of its examples.
      said: by client that says it, when it can take part.
    """

    def __init__(self, told: Callable[[int], None]):
        """Args: what is called with the number of examples of every batch."""
        self.codes: dict[str, int] = {}
        self.sums: list[int] = []
        self.said: dict[int, str] = {}
        self._told = told
        self._parts: list[np.ndarray] = []
        self._code_B: list[int] = []

    def passed(self, examples: Iterable[tuple[str, Example]]) -> Iterator[Example]:
        """The examples, each noted when it is asked for.

        Raises:
          UserError: as of `write_population`.
        """
        for name, example in examples:
            code = self.codes.setdefault(name, len(self.codes))
            if code == len(self.sums):
                check_client_name(name, "client")
                self.sums.append(0)
            self.sums[code] = add_to_sum(self.sums[code], example)
            if example.available and self.said.get(code) != example.available:
                text = read_available(example.available, f"client {name!r}")
                if self.said.setdefault(code, text) != text:
                    raise differ(name, self.said[code], text)
            self._code_B.append(code)
            if len(self._code_B) == BATCH:
                self._end_batch()
            yield example
        self._end_batch()

    def _end_batch(self) -> None:
        self._parts.append(np.array(self._code_B, np.int32))
        self._told(len(self._code_B))
        self._code_B.clear()

    def code_of_each(self) -> np.ndarray:
        """Each example's client, int32 [I]."""
        return np.concatenate(self._parts)

    def columns(self) -> dict[str, Sequence[Any]]:
        """What is kept of each client."""
        found: dict[str, Sequence[Any]] = {"name": list(self.codes), "sum": self.sums}
        if self.said:
            found["available"] = [self.said.get(code, "") for code in range(len(self.sums))]
        return found


def _checked(examples: Iterable[Any]) -> Iterator[tuple[str, Example]]:
    """Clients' names and examples, each of which is looked at when it is asked for.

    An example that names no task has the client's name as its task, as a record has.

    Raises:
      UserError: one is something else, or no example that a file could hold.
    """
    for number, given in enumerate(examples, start=1):
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise UserError(
                f"examples: {short(repr(given))} is no pair of a client's name and an example"
            )
        name, example = given
        check_example(example, f"examples: client {name!r}, number {number}")
        yield name, example if example.task else dataclasses.replace(example, task=name)


def _refuse_twice(names: Sequence[str]) -> None:
    # Two names that differ in case alone would share a folder on some file systems.
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise UserError(f"data.path: client {name!r} is there twice ({other!r}); rename one")


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([(name, pa.large_string()) for name in FIELDS])


def _write(file: Path, examples: Iterable[Example]) -> int:
    """Writes examples in batches; returns their number."""
    import pyarrow as pa

    schema, count = _schema(), 0
    columns: list[list[str]] = [[] for _ in FIELDS]
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:

        def flush() -> None:
            writer.write_batch(pa.record_batch(columns, schema=schema))
            for column in columns:
                column.clear()

        for example in examples:
            for column, name in zip(columns, FIELDS, strict=True):
                column.append(as_text(getattr(example, name)))
            count += 1
            if len(columns[0]) == BATCH:
                flush()
        if columns[0]:
            flush()
    return count


def _write_clients(
    file: Path, columns: Mapping[str, Sequence[Any]], order_C: Sequence[int]
) -> None:
    """Writes what is known of the clients, in an order."""
    import pyarrow as pa

    kinds = {"name": pa.string(), "sum": pa.uint32(), "available": pa.string()}
    table = pa.table(
        {
            name: pa.array([own[code] for code in order_C], kinds[name])
            for name, own in columns.items()
        }
    )
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
