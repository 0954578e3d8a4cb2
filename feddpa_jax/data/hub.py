"""Hugging Face data sets with a client column, from the hub or from disk."""

import dataclasses
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from feddpa_jax.data.records import check_client_name, to_example
from feddpa_jax.types import Client, Example, Federation, UserError

_OPTIONS = {"client_column": "client", "split": "train", "test_split": "test", "config": ""}
_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


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

    Raises:
      UserError: an unknown option, no such data set, split or column, or a bad record.
    """
    name, _, query = path.removeprefix("hf:").partition("?")
    if not name:
        raise UserError(f"data.path: {path!r} names no data set; write hf:NAME")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise UserError(
            f"data.path: unknown option {unknown[0]!r} in {path!r}; known: {', '.join(_OPTIONS)}"
        )
    needed = {"split", *options} & {"split", "test_split"}
    options = _OPTIONS | options
    splits = _load(name, options["config"], path)
    for option in sorted(needed):
        if options[option] not in splits:
            raise UserError(
                f"data.path: {path}: no split {options[option]!r}; name one of {list(splits)} "
                f"as {option}"
            )
    train = splits[options["split"]]
    column = options["client_column"]
    if column not in train.column_names:
        raise UserError(
            f"data.path: {path}: no column {column!r}; name one of {train.column_names} "
            "as client_column"
        )
    by_client: dict[str, list[Example]] = {}
    for number, record in enumerate(train, start=1):
        source = f"{path}, split {options['split']}, record {number}"
        client = check_client_name(_client_name(record[column], source, column), source)
        by_client.setdefault(client, []).append(to_example(record, source, task=client))
    test = []
    for number, record in enumerate(splits.get(options["test_split"], ()), start=1):
        source = f"{path}, split {options['test_split']}, record {number}"
        example = to_example(record, source)
        if not example.task:
            if record.get(column) is None:
                raise UserError(f"{source}: names no 'task', and no client in column {column!r}")
            task = _client_name(record.get(column), source, column)
            example = dataclasses.replace(example, task=task)
        test.append(example)
    clients = tuple(Client(client, tuple(by_client[client])) for client in sorted(by_client))
    return Federation(clients, tuple(test))


def _client_name(value: Any, source: str, column: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(
            f"{source}: column {column!r} is {value!r}, not a client's name or whole number"
        )
    return str(value)


def _load(name: str, config: str, path: str) -> dict[str, Any]:
    import datasets

    place = user_path(name)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            loaded = datasets.load_from_disk(str(place))
        elif place.is_file() and place.suffix in _FORMATS:
            loaded = datasets.load_dataset(_FORMATS[place.suffix], data_files=str(place))
        else:
            loaded = datasets.load_dataset(str(place) if place.exists() else name, config or None)
    except Exception as error:  # The library's errors have no common base.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"data.path: {path}: cannot be loaded: {reason}") from None
    return (
        {"train": loaded}
        if isinstance(loaded, datasets.Dataset)
        else {str(split): part for split, part in loaded.items()}
    )
