"""Hugging Face data sets with a client column, from the hub or from a local folder."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from feddpa_jax.data.records import check_client_name, to_example
from feddpa_jax.types import Client, Example, Federation, UserError

_OPTIONS = {"client_column": "client", "split": "train", "test_split": "test", "config": ""}


def load_hub(path: str) -> Federation:
    """Loads "hf:NAME?client_column=client&split=train&test_split=test&config=CONFIG".

    NAME is a hub id, a folder of data files that `datasets.load_dataset` reads, or one that
    `save_to_disk` wrote. Columns are those of records: instruction, output, and where they exist
    input, task and category. The test split may be absent. No code of a data set is run.

    Raises:
      UserError: an unknown option, no such data set, split or column, or a bad record.
    """
    name, _, query = path.removeprefix("hf:").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise UserError(
            f"data.path: unknown option {unknown[0]!r} in {path!r}; known: {', '.join(_OPTIONS)}"
        )
    options = _OPTIONS | options
    splits = _load(name, options["config"], path)
    if options["split"] not in splits:
        raise UserError(f"data.path: {path}: no split {options['split']!r}; it has {list(splits)}")
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
        client = check_client_name(str(record[column]), source)
        by_client.setdefault(client, []).append(to_example(record, source, task=client))
    test = []
    for number, record in enumerate(splits.get(options["test_split"], ()), start=1):
        source = f"{path}, split {options['test_split']}, record {number}"
        test.append(to_example(record, source, task=str(record.get(column) or "")))
    clients = tuple(Client(client, tuple(by_client[client])) for client in sorted(by_client))
    return Federation(clients, tuple(test))


def _load(name: str, config: str, path: str) -> dict[str, Any]:
    import datasets

    place = Path(name).expanduser()
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            loaded = datasets.load_from_disk(str(place))
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
