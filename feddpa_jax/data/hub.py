"""Hugging Face data sets with a client column, from the hub or from disk."""

import glob
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from feddpa_jax.data.available import spread
from feddpa_jax.data.splits import RecordsOfTests, Splits
from feddpa_jax.data.tables import KINDS, Table, read_tables, stream_table
from feddpa_jax.files.problems import reason
from feddpa_jax.types import Client, Example, Federation, UserError

_OPTIONS = {"client_column": "client", "split": "train", "test_split": "test", "config": ""}


def user_path(path: str, field: str = "data.path") -> Path:
    """A path that a user named, with `~` resolved.

    Raises:
      UserError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{field}: {path}: no such home folder; write the path in full") from None


def load_hub(path: str, columns: Mapping[str, str] | None = None) -> Federation:
    """Loads "hf:NAME?client_column=client&split=train&test_split=test&config=CONFIG".

    NAME is a hub id, a JSON, Parquet or CSV file, a folder of data files that
    `datasets.load_dataset` reads, or one that `save_to_disk` wrote. Columns are those of records.
    The client column holds text or whole numbers. A test split that is not named may be absent. No
    code of a data set is run. Values of a CSV file are read as text exactly as written, digits and
    `NA` included.

    Args:
      path: the text above.
      columns: the data's name of a column by ours (`data.columns`).

    Raises:
      UserError: an unknown option, no such data set, split or column, or a bad record.
    """
    found = read_splits(path, columns)
    by_client: dict[str, list[Example]] = {}
    for client, example in found.training():
        by_client.setdefault(client, []).append(example)
    test = tuple(found.tests())
    clients = tuple(Client(name, spread(name, by_client[name])) for name in sorted(by_client))
    return Federation(clients, test)


def read_splits(
    path: str, columns: Mapping[str, str] | None = None, *, streamed: bool = False
) -> Splits:
    """The training and test records of "hf:NAME?..." (see `load_hub`).

    Args:
      path: as the user wrote it.
      columns: the data's name of a column by ours (`data.columns`).
      streamed: a file, or a folder with `train.parquet`, is read record by record.

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
    return Splits(path, options, train, splits.get(options["test_split"]), columns)


def load_tests(path: str, columns: Mapping[str, str] | None = None) -> tuple[Example, ...]:
    """Test instances of a file, a folder of data, or "hf:NAME?split=test&config=CONFIG".

    The split is the one named, the one called test, or the only one there is. A record names its
    task, or its client in the column `client_column`.

    Args:
      path: `data.test_path`.
      columns: the data's name of a column by ours (`data.columns`).

    Raises:
      UserError: an unknown option, no such data set or split, a bad record, or one without a task.
    """
    found = read_tests(path, columns)
    test = tuple(found.examples())
    if not test:
        raise UserError(
            f"data.test_path: {path} holds no test instance; add some or name other data"
        )
    return test


def read_tests(path: str, columns: Mapping[str, str] | None = None) -> RecordsOfTests:
    """The records of test instances, as of `load_tests`, before they are examples.

    Raises:
      UserError: an unknown option, or no such data set or split.
    """
    field = "data.test_path"
    name, options = _options(path, field) if path.startswith("hf:") else (path, {})
    if "test_split" in options:
        raise UserError(f"{field}: {path}: the split of tests is named as split here")
    if not path.startswith("hf:") and not user_path(path, field).exists():
        raise UserError(f"{field}: {path} does not exist; name a file, a folder, or hf:NAME")
    splits = _load(name, options.get("config", ""), path, field)
    only = next(iter(splits)) if len(splits) == 1 else "test"
    split = options.get("split", only)
    if split not in splits:
        raise UserError(
            f"{field}: {path}: no split {split!r}; name one of {list(splits)} in "
            "hf:NAME?split=SPLIT"
        )
    column = options.get("client_column", _OPTIONS["client_column"])
    return RecordsOfTests(splits[split], f"{path}, split {split}", column, columns)


def _options(path: str, field: str = "data.path") -> tuple[str, dict[str, str]]:
    """The data set's name, and the options that are given."""
    name, _, query = path.removeprefix("hf:").partition("?")
    if not name:
        raise UserError(f"{field}: {path!r} names no data set; write hf:NAME")
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise UserError(f"{field}: {path}: an option appears twice; give each once")
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise UserError(
            f"{field}: unknown option {unknown[0]!r} in {path!r}; known: {', '.join(_OPTIONS)}"
        )
    return name, options


def client_column(path: str) -> str:
    """The column of clients of "hf:NAME?...", whose split is the first.

    Raises:
      UserError: an unknown option.
      KeyError: another split is asked for.

    >>> client_column("hf:people.jsonl?client_column=user")
    'user'
    """
    options = _OPTIONS | _options(path)[1]
    if any(options[name] != _OPTIONS[name] for name in _OPTIONS if name != "client_column"):
        raise KeyError(path)
    return options["client_column"]


def _load(
    name: str, config: str, path: str, field: str = "data.path", *, streamed: bool = False
) -> dict[str, Table]:
    """The splits of a data set."""
    import datasets
    import huggingface_hub

    place = user_path(name, field)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    # Errors are reported below, in one line.
    for library in (datasets.logging, huggingface_hub.utils.logging):
        library.set_verbosity(logging.CRITICAL)
    if place.exists() and not (place.is_file() or place.is_dir()):
        raise UserError(f"{field}: {path} is a pipe or a device; write it into a file first")
    on_disk = (place / "dataset_dict.json").is_file() or (place / "state.json").is_file()
    no_kind = (None, ",")
    kind, separator = KINDS.get(place.suffix.lower(), no_kind) if place.is_file() else no_kind
    if config and (on_disk or kind):
        raise UserError(f"{field}: {path}: config is for data sets of the hub; leave it out")
    if streamed and kind:
        return {"train": stream_table(place, kind, separator=separator)}
    if streamed and place.is_dir():
        there = {split: place / f"{split}.parquet" for split in ("train", "test")}
        return {
            split: stream_table(file, "parquet") for split, file in there.items() if file.is_file()
        }
    if kind in ("csv", "json"):
        return {"train": read_tables([place], kind, separator=separator)}
    if place.is_file() and not kind:
        raise UserError(f"{field}: {path}: {place.name} is none of {', '.join(KINDS)}; convert it")
    if place.is_dir() and not on_disk and glob.has_magic(str(place)):
        raise UserError(
            f"{field}: {path}: the folder's path holds *, ? or [, which are patterns to the "
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
            f"{field}: {path}: cannot be loaded; is it there, and not empty or damaged? "
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
