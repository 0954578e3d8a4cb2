"""Clients' folders: `clients/<name>/train.jsonl`, and optionally `test.jsonl` beside it."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from feddpa_jax.data.records import check_client_name, read_json_lines
from feddpa_jax.data.strays import is_of_system, refuse_strays
from feddpa_jax.types import Client, Example, UserError

FOLDER = "clients"


def read_client(name: str, file: Path, read: Callable[..., tuple[Example, ...]]) -> Client:
    """A client with the examples of a file.

    Raises:
      UserError: it has none, or one is bad.
    """
    train = read(file, task=name)
    if not train:
        raise UserError(f"{file}: client {name!r} has no training example; add some or remove it")
    return Client(name, train)


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


def client_folders(folder: Path) -> Iterator[tuple[Client, tuple[Example, ...]]]:
    """Each client of a folder and its test instances, in the order of their names.

    Args:
      folder: holds a folder for each client.

    Raises:
      UserError: a file is missing, bad or looks like data that is not read.
    """
    refuse_beside_clients(folder, ("train", "test"), all_lines=True)
    for place in client_places(folder):
        name = check_client_name(place.name, str(folder))
        refuse_strays(
            place,
            lambda file: file in ("train.jsonl", "test.jsonl"),
            "a client's files are train.jsonl and test.jsonl; rename or remove it",
            words=("train", "test"),
            all_lines=True,
        )
        train, tests = place / "train.jsonl", place / "test.jsonl"
        if not os.path.lexists(train):
            raise UserError(f"{place}: no train.jsonl; every client needs one")
        test: tuple[Example, ...] = ()
        client = read_client(name, train, read_json_lines)
        if os.path.lexists(tests):
            test = with_tests(tests, read_json_lines(tests, task=name))
        yield client, test


def client_places(folder: Path) -> list[Path]:
    """The clients' folders, in the order of their names."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_of_system(p.name))
