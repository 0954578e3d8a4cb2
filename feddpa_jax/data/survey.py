"""All that is wrong with data, where loading them stops at the first problem.

Data are gone through once more, record by record. What is wrong with a file as a whole ends that
file alone; what is wrong with how a folder is laid out ends the survey.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from feddpa_jax.data.client_folders import FOLDER, client_files, client_places
from feddpa_jax.data.columns import Columns, of_tests
from feddpa_jax.data.hub import read_splits, read_tests, user_path
from feddpa_jax.data.layouts import check_test, find_layout
from feddpa_jax.data.population import is_population
from feddpa_jax.data.records import check_client_name, json_lines, to_example
from feddpa_jax.data.selection import Selection, check_held_out
from feddpa_jax.data.tables import KINDS, holds_list, read_tables
from feddpa_jax.files.strict_json import parse_json
from feddpa_jax.types import Example, UserError, differ

Names = Mapping[str, str] | None


class _Clients:
    """What is known of the clients whose records were gone through."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._said: dict[str, str] = {}
        self._folded: dict[str, str] = {}

    def add(self, name: str, example: Example) -> None:
        """Notes a client's record.

        Raises:
          UserError: it disagrees with another one on when the client is available.
        """
        self._count[name] = self._count.get(name, 0) + 1
        said = example.available
        if said and self._said.setdefault(name, said) != said:
            raise differ(name, self._said[name], said)

    def problems(self, path: str, selection: Selection) -> Iterator[str]:
        """Clients that would hold out all they have, and two of one name."""
        for name, count in sorted(self._count.items()):
            most = count if selection.max_train is None else min(count, selection.max_train)
            yield from _tried(check_held_out, name, most, selection.validation)
            other = self._folded.setdefault(name.lower(), name)
            if other != name:
                yield f"data.path: {path}: client {name!r} is there twice ({other!r})"


def problems_of(
    path: str, selection: Selection, columns: Names = None, test_path: str | None = None
) -> Iterator[str]:
    """What is wrong with the records of data, one message a problem, as loading would say it.

    Nothing of the sample and of populations, which say their one problem when they are opened.

    Args:
      path: as of `load_federation`.
      selection: which of its examples each client trains on and holds out.
      columns: the data's name of a column by ours (`data.columns`).
      test_path: as of `load_federation`.
    """
    if path == "sample" or (not path.startswith("hf:") and is_population(user_path(path))):
        return
    clients = _Clients()
    if path.startswith("hf:"):
        yield from _ended(_of_splits, path, columns, clients)
    else:
        yield from _ended(_of_folder, user_path(path), columns, clients)
    yield from clients.problems(path, selection)
    if test_path is not None:
        yield from _ended(_of_tests, test_path, columns)


def _of_splits(path: str, columns: Names, clients: _Clients) -> Iterator[str]:
    file = user_path(path.removeprefix("hf:").partition("?")[0])
    splits, own = read_splits(path, columns, streamed=file.is_file()), Columns(columns)

    def add(number: int, read: Callable[[], Any]) -> None:
        clients.add(*splits.example(number, read(), own))

    reads = (read for _, read in _lines(file)) if _has_lines(file) else _read(splits.train.records)
    for number, read in enumerate(reads, start=1):
        yield from _tried(add, number, read)
    if splits.test is not None:
        yield from _tried(lambda: list(splits.tests()))


def _of_tests(path: str, columns: Names) -> Iterator[str]:
    found, own = read_tests(path, columns), Columns(of_tests(columns))
    for number, record in enumerate(found.table.records, start=1):
        yield from _tried(found.example, number, record, own)


def _of_folder(folder: Path, columns: Names, clients: _Clients) -> Iterator[str]:
    found = find_layout(folder)
    if found is None:
        for place in client_places(folder / FOLDER):
            yield from _ended(_of_client, place, columns, clients)
        return
    for name, file in found.training.items():
        yield from _ended(_of_training, name, file, columns, clients)
    for file in found.tests:
        yield from _ended(_of_test_file, file, columns, "")


def _of_client(place: Path, columns: Names, clients: _Clients) -> Iterator[str]:
    name = check_client_name(place.name, str(place.parent))
    train, tests = client_files(place)
    yield from _ended(_of_training, name, train, columns, clients)
    if os.path.lexists(tests):
        yield from _of_test_file(tests, columns, name)


def _of_training(name: str, file: Path, columns: Names, clients: _Clients) -> Iterator[str]:
    own, empty = Columns(columns), True

    def add(source: str, read: Callable[[], Any]) -> None:
        clients.add(name, to_example(read(), source, task=name, columns=own))

    for source, read in _records(file):
        empty = False
        yield from _tried(add, source, read)
    if empty:
        yield f"{file}: client {name!r} has no training example; add some or remove it"


def _of_test_file(file: Path, columns: Names, task: str) -> Iterator[str]:
    own, number = Columns(of_tests(columns)), 0

    def look(number: int, source: str, read: Callable[[], Any]) -> None:
        check_test(to_example(read(), source, task=task, columns=own), number, file)

    for number, (source, read) in enumerate(_records(file), start=1):
        yield from _tried(look, number, source, read)
    if not number:
        yield f"{file}: holds no test instance; add some or remove the file"


def _records(file: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each record's source, for messages, and how it is read."""
    if _has_lines(file):
        yield from ((f"{file}, line {number}", read) for number, read in _lines(file))
        return
    kind, separator = KINDS[file.suffix.lower()]
    found = _read(read_tables([file], kind, separator=separator).records)
    yield from ((f"{file}, record {number}", read) for number, read in enumerate(found, start=1))


def _has_lines(file: Path) -> bool:
    """Whether a file's records are its lines, each of which is read on its own."""
    return file.is_file() and file.suffix.lower() == ".jsonl" and not holds_list(file)


def _lines(file: Path) -> Iterator[tuple[int, Callable[[], Any]]]:
    for number, line in json_lines(file):
        parse = functools.partial(parse_json, line, str(file), line=number, finite=False)
        yield number, parse


def _read(records: Iterable[Any]) -> Iterator[Callable[[], Any]]:
    return (lambda record=record: record for record in records)


def _tried(step: Callable[..., object], *given: Any) -> Iterator[str]:
    """The message of a step that fails."""
    try:
        step(*given)
    except UserError as error:
        yield str(error)


def _ended(steps: Callable[..., Iterator[str]], *given: Any) -> Iterator[str]:
    """The messages of some steps, and that of what ends them."""
    try:
        yield from steps(*given)
    except UserError as error:
        yield str(error)
