"""Hugging Face data sets with a client column, from the hub or from disk."""

import dataclasses
import glob
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from feddpa_jax.data.records import check_client_name, to_example
from feddpa_jax.data.tables import Table, read_tables, stream_table
from feddpa_jax.files.problems import reason
from feddpa_jax.types import Client, Example, Federation, UserError

_OPTIONS = {"client_column": "client", "split": "train", "test_split": "test", "config": ""}
_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}


def user_path(path: str) -> Path:
    """A path that a user named, with `~` resolved.

    Raises:
      UserError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"data.path: {path}: no such home folder; write the path in full") from None


def load_hub(path: str) -> Federation:
    """Loads "hf:NAME?client_column=client&split=train&test_split=test&config=CONFIG".

    NAME is a hub id, a JSON, Parquet or CSV file, a folder of data files that
    `datasets.load_dataset` reads, or one that `save_to_disk` wrote. Columns are those of records:
    instruction, output, and where they exist input, task and category. The client column holds text
    or whole numbers. A test split that is not named may be absent. No code of a data set is run.
    Values of a CSV file are read as text exactly as written, digits and `NA` included.

    Raises:
      UserError: an unknown option, no such data set, split or column, or a bad record.
    """
    found = read_splits(path)
    by_client: dict[str, list[Example]] = {}
    for client, example in found.training():
        by_client.setdefault(client, []).append(example)
    test = tuple(found.tests())
    clients = tuple(Client(client, tuple(by_client[client])) for client in sorted(by_client))
    return Federation(clients, test)


class Splits(NamedTuple):
    """The records of a data set, before they are examples.

    Attributes:
      path: as the user wrote it.
      options: split, test_split and client_column.
      train: training records.
      test: test records; None where there is no such split.
    """

    path: str
    options: dict[str, str]
    train: Table
    test: Table | None

    def training(self) -> Iterator[tuple[str, Example]]:
        """Each record's client and example.

        Raises:
          UserError: there is none, or one is bad.
        """
        split, column = self.options["split"], self.options["client_column"]
        number = 0
        for number, record in enumerate(self.train.records, start=1):
            source = f"{self.path}, split {split}, record {number}"
            if not isinstance(record, dict):
                raise UserError(f"{source}: not an object with instruction and output")
            client = check_client_name(_client_name(record.get(column), source, column), source)
            yield client, to_example(record, source, task=client)
        if not number:
            raise UserError(
                f"data.path: {self.path}: split {split!r} has no record; name another data set or "
                "split"
            )

    def tests(self) -> Iterator[Example]:
        """The test instances.

        Raises:
          UserError: the split is there and has none, or one is bad.
        """
        split, column = self.options["test_split"], self.options["client_column"]
        number = 0
        for number, record in enumerate(self.test.records if self.test else (), start=1):
            source = f"{self.path}, split {split}, record {number}"
            example = to_example(record, source)
            if not example.task:
                if record.get(column) is None:
                    raise UserError(
                        f"{source}: names no 'task', and no client in column {column!r}"
                    )
                task = _client_name(record.get(column), source, column)
                example = dataclasses.replace(example, task=task)
            yield example
        if self.test is not None and not number:
            raise UserError(
                f"data.path: {self.path}: split {split!r} has no record; leave it out, or name "
                "another as test_split"
            )


def read_splits(path: str, *, streamed: bool = False) -> Splits:
    """The training and test records of "hf:NAME?..." (see `load_hub`).

    Args:
      path: as the user wrote it.
      streamed: a file of JSON lines or CSV is read record by record.

    Raises:
      UserError: an unknown option, or no such data set, split or column.
    """
    name, given = _options(path)
    needed = {"split", *given} & {"split", "test_split"}
    options = _OPTIONS | given
    splits = _load(name, options["config"], path, streamed=streamed)
    for option in sorted(needed):
        if options[option] not in splits:
            raise UserError(
                f"data.path: {path}: no split {options[option]!r}; name one of {list(splits)} "
                f"as {option}"
            )
    train = splits[options["split"]]
    column = options["client_column"]
    if train.columns and column not in train.columns:
        raise UserError(
            f"data.path: {path}: no column {column!r}; name one of {list(train.columns)} "
            "as client_column"
        )
    return Splits(path, options, train, splits.get(options["test_split"]))


def _options(path: str) -> tuple[str, dict[str, str]]:
    """The data set's name, and the options that are given."""
    name, _, query = path.removeprefix("hf:").partition("?")
    if not name:
        raise UserError(f"data.path: {path!r} names no data set; write hf:NAME")
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise UserError(f"data.path: {path}: an option appears twice; give each once")
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise UserError(
            f"data.path: unknown option {unknown[0]!r} in {path!r}; known: {', '.join(_OPTIONS)}"
        )
    return name, options


def _client_name(value: Any, source: str, column: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(
            f"{source}: column {column!r} is {value!r}, not a client's name or whole number"
        )
    return str(value)


def _load(name: str, config: str, path: str, *, streamed: bool) -> dict[str, Table]:
    """The splits of a data set."""
    import datasets
    import huggingface_hub

    place = user_path(name)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    # Errors are reported below, in one line.
    for library in (datasets.logging, huggingface_hub.utils.logging):
        library.set_verbosity(logging.CRITICAL)
    on_disk = (place / "dataset_dict.json").is_file() or (place / "state.json").is_file()
    kind = None if on_disk or not place.is_file() else _FORMATS.get(place.suffix.lower())
    if config and (on_disk or kind):
        raise UserError(f"data.path: {path}: config is for data sets of the hub; leave it out")
    if kind in ("csv", "json"):
        separator = "\t" if place.suffix.lower() == ".tsv" else ","
        if streamed:
            return {"train": stream_table(place, kind, separator=separator)}
        return {"train": read_tables([place], kind, separator=separator)}
    if place.is_file() and not kind:
        raise UserError(
            f"data.path: {path}: {place.name} is none of {', '.join(_FORMATS)}; convert it"
        )
    if place.is_dir() and not on_disk and glob.has_magic(str(place)):
        raise UserError(
            f"data.path: {path}: the folder's path holds *, ? or [, which are patterns to the "
            "library that reads it; rename the folder"
        )
    try:
        if on_disk:
            loaded = datasets.load_from_disk(str(place))
        elif kind:
            # A name may hold characters that are patterns to the library.
            loaded = datasets.load_dataset(kind, data_files=glob.escape(str(place)))
        else:
            return _load_repository(str(place) if place.exists() else name, config or None)
    except UserError:
        raise
    except Exception as error:  # The library's errors have no common base.
        raise UserError(
            f"data.path: {path}: cannot be loaded; is it there, and not empty or damaged? "
            f"({type(error).__name__}: {reason(error)})"
        ) from None
    return _tables(loaded)


def _tables(loaded: Any) -> dict[str, Table]:
    import datasets

    splits = {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded
    return {str(split): Table(part.column_names, part) for split, part in splits.items()}


def _load_repository(name: str, config: str | None) -> dict[str, Table]:
    """The splits of a folder of data files, or of a data set of the hub."""
    import datasets

    builder = datasets.load_dataset_builder(name, config)
    kind = {"CsvConfig": "csv", "JsonConfig": "json"}.get(type(builder.config).__name__)
    if kind is None:
        return _tables(datasets.load_dataset(name, config))
    manager = datasets.DownloadManager()
    found: Any = manager.download_and_extract(builder.config.data_files)
    separator = getattr(builder.config, "sep", None) or ","
    return {
        str(split): read_tables(
            [Path(file) for file in manager.iter_files(files)], kind, separator=separator
        )
        for split, files in found.items()
    }
