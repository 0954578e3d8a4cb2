"""Clients' folders: `clients/<name>/train.jsonl`, and optionally `test.jsonl` beside it."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from feddpa_jax.data.available import spread
from feddpa_jax.data.columns import of_tests
from feddpa_jax.data.records import check_client_name, read_file
from feddpa_jax.data.strays import is_of_system, refuse_strays
from feddpa_jax.data.tables import KINDS
from feddpa_jax.types import Client, Example, UserError

FOLDER = "clients"


def read_client(
    name: str,
    file: Path,
    read: Callable[..., tuple[Example, ...]],
    columns: Mapping[str, str] | None = None,
) -> Client:
    """A client with the examples of a file.

    Args:
      name: the client's.
      file: the file.
      read: reads it, such as `read_json_lines`.
      columns: the data's name of a column by ours (`data.columns`).

    Raises:
      UserError: it has none, one is bad, or they disagree on when the client is available.
    """
    train = read(file, task=name, columns=columns)
    if not train:
        raise UserError(f"{file}: client {name!r} has no training example; add some or remove it")
    return Client(name, spread(name, train))


def with_tests(file: Path, examples: tuple[Example, ...]) -> tuple[Example, ...]:
    """The test instances of a file.

    Raises:
      UserError: there is none.
    """
    if not examples:
        raise UserError(f"{file}: holds no test instance; add some or remove the file")
    return examples


def refuse_beside_clients(folder: Path, words: Sequence[str], *, all_lines: bool) -> None:
    """Refuses what looks like data beside clients' folders, as `refuse_strays` does."""
    remedy = "records go into clients/<name>/; move or remove it"
    refuse_strays(folder, lambda _: False, remedy, words=words, all_lines=all_lines)


def client_folders(
    folder: Path, columns: Mapping[str, str] | None = None
) -> Iterator[tuple[Client, tuple[Example, ...]]]:
    """Each client of a folder and its test instances, in the order of their names.

    Args:
      folder: holds a folder for each client.
      columns: the data's name of a column by ours (`data.columns`).

    Raises:
      UserError: a file is missing, bad or looks like data that is not read.
    """
    refuse_beside_clients(folder, ("train", "test"), all_lines=True)
    for place in client_places(folder):
        yield client_folder(place, columns)


def client_folder(
    place: Path, columns: Mapping[str, str] | None = None
) -> tuple[Client, tuple[Example, ...]]:
    """The client of one folder, and its test instances.

    Args:
      place: the client's folder.
      columns: the data's name of a column by ours (`data.columns`).

    Raises:
      UserError: a file is missing, bad or looks like data that is not read.
    """
    name = check_client_name(place.name, str(place.parent))
    train, tests = client_files(place)
    client = read_client(name, train, read_file, columns)
    test: tuple[Example, ...] = ()
    if os.path.lexists(tests):
        test = with_tests(tests, read_file(tests, task=name, columns=of_tests(columns)))
    return client, test


def client_files(place: Path) -> tuple[Path, Path]:
    """The files of a client's training examples and of its test instances, which may be absent.

    Raises:
      UserError: the first is missing, there are several, or a file looks like data not read.
    """
    train, tests = (_of_client(place, part) for part in ("train", "test"))
    refuse_strays(
        place,
        lambda file: file in (train.name, tests.name),
        "a client's files are train.jsonl and test.jsonl; rename or remove it",
        words=("train", "test"),
        all_lines=True,
    )
    if not os.path.lexists(train):
        raise UserError(f"{place}: no train.jsonl; every client needs one")
    return train, tests


def _of_client(place: Path, part: str) -> Path:
    """A client's file of a part, of whatever kind; `.jsonl` comes before others, or where none is.

    Raises:
      UserError: there are several others.
    """
    there = [path for end in KINDS if os.path.lexists(path := place / f"{part}{end}")]
    if len(there) > 1 and there[0].suffix != ".jsonl":
        names = " and ".join(path.name for path in there)
        raise UserError(f"{place}: holds {names}; keep the one that you mean")
    return there[0] if there else place / f"{part}.jsonl"


def client_places(folder: Path) -> list[Path]:
    """The clients' folders, in the order of their names."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_of_system(p.name))
