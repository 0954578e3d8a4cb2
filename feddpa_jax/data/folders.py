"""Loads federations: the sample, the paper's folders, client folders, Hugging Face data sets."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Optional, get_args

from annotated_types import Ge

from feddpa_jax.checked_settings import Count, check_value
from feddpa_jax.data.available import read_available
from feddpa_jax.data.client_folders import (
    FOLDER,
    client_folders,
    read_client,
    with_tests,
)
from feddpa_jax.data.columns import check_columns, of_tests
from feddpa_jax.data.hub import load_hub, load_tests, user_path
from feddpa_jax.data.layouts import check_test, find_layout
from feddpa_jax.data.made_examples import check_example, check_tests
from feddpa_jax.data.opened import Cache, open_population
from feddpa_jax.data.records import (
    check_client_name,
    read_json_lines,
    read_json_list,
)
from feddpa_jax.data.sample import sample_federation
from feddpa_jax.data.selection import Selection, some_per_task
from feddpa_jax.files.escape import short
from feddpa_jax.types import Client, Example, Federation, Source, UserError

# What `data.path` says of a federation that was made in memory.
IN_MEMORY = "in memory"


def load_federation(
    path: str,
    *,
    seed: int = 0,
    max_train: int | None = None,
    validation: int = 0,
    max_test: int | None = None,
    cache: Cache = "auto",
    columns: Mapping[str, str] | None = None,
    test_path: str | None = None,
) -> Federation:
    """Loads all clients and test instances; large data are opened, and read client by client.

    Args:
      path: one of
        - "sample": eight small built-in tasks, made from the seed;
        - a folder with `<N>/local_training_{k}.json` and `*test*.jsonl` (the paper's layout;
          clients are named client_0, client_1, ...), or its `<N>` folder;
        - a folder with `clients/<name>/train.jsonl` and optionally `test.jsonl`, or the same files
          as `.json`, `.csv`, `.tsv` or `.parquet`;
        - "hf:NAME?client_column=COLUMN": a data set of the hub or on disk (see `load_hub`);
        - a folder that `write_population` wrote.
      seed: of the sample, and of the choices that `max_train`, `validation` and `max_test` make.
      max_train: most examples per client, chosen by its name and the seed.
      validation: how many of these each client holds out, chosen in the same way.
      max_test: most test instances per task, chosen by its name and the seed.
      cache: whether the data are read once into a cache of Arrow files and opened from there, which
        takes a moment and little memory (`data.opened`); "auto": large data are.
      columns: the data's name of a column by ours, such as {"instruction": "question"}; for what a
        record may have see `Columns`.
      test_path: test instances in place of the federation's own: a file, a folder that
        `save_to_disk` wrote, or "hf:NAME?split=test".

    Raises:
      UserError: anything wrong with the data, naming file and line.

    >>> data = load_federation("sample", max_train=2, max_test=1)
    >>> len(data.clients), len(data.clients[0].train), len(data.test)
    (8, 2, 8)
    """
    if path == IN_MEMORY:
        raise UserError(
            "data.path: these data were made in memory; open the run in Python with "
            "Experiment(base, data, config, run_dir=...), or write the data into a folder and name "
            "it with --data.path"
        )
    check_value("data.max_train", Optional[Count], max_train)  # noqa: UP045
    check_value("data.validation", Annotated[int, Ge(0)], validation)
    check_value("data.max_test", Optional[Count], max_test)  # noqa: UP045
    if cache not in get_args(Cache):
        raise UserError(f"data.cache: is {cache!r}; use one of {', '.join(get_args(Cache))}")
    columns = check_columns(columns)
    if columns and path == "sample":
        raise UserError("data.columns: the sample has our own columns; leave it out")
    selection = Selection(max_train, validation, seed)
    source = Source(
        *(path, seed, max_train, validation, max_test),
        columns=tuple(sorted(columns.items())),
        test_path=test_path,
    )
    try:
        population = None if path == "sample" else open_population(path, cache, columns)
        other = None if test_path is None else load_tests(test_path, columns)
        if population is not None:
            test = some_per_task(population.test() if other is None else other, max_test, seed)
            return Federation(population.choosing(selection), test, source)
        if path == "sample":
            federation = sample_federation(seed)
        elif path.startswith("hf:"):
            federation = load_hub(path, columns)
        else:
            federation = _load_folder(user_path(path), columns)
        if other is not None:
            federation = dataclasses.replace(federation, test=other)
    except OSError as error:
        # Such as a name that is too long, or a folder that may not be listed.
        raise UserError(f"data.path: {short(path)}: cannot be read: {error.strerror}") from None
    _check(federation, f"data.path: {path}")
    return Federation(
        clients=tuple(selection.of(client.name, client.train) for client in federation.clients),
        test=some_per_task(federation.test, max_test, seed),
        source=source,
    )


def _load_folder(folder: Path, columns: Mapping[str, str] | None) -> Federation:
    found = find_layout(folder)
    if found is None:
        pairs = list(client_folders(folder / FOLDER, columns))
        test = tuple(example for _, tests in pairs for example in tests)
        return Federation(tuple(client for client, _ in pairs), test)
    training, tests = found
    clients = tuple(
        read_client(name, file, read_json_list, columns) for name, file in training.items()
    )
    return Federation(
        clients, tuple(example for file in tests for example in _tests(file, columns))
    )


def _tests(file: Path, columns: Mapping[str, str] | None) -> tuple[Example, ...]:
    examples = read_json_lines(file, columns=of_tests(columns))
    for number, example in enumerate(examples, start=1):
        check_test(example, number, file)
    return with_tests(file, examples)


def check_made(federation: Federation) -> None:
    """Refuses a federation made in memory that none of our files could hold.

    Raises:
      UserError: no client, two of one name, a name that is no folder's, a client without a training
        example, an example with an empty or wrong field, or a test instance without a task.
    """
    for number, client in enumerate(federation.clients, start=1):
        if not isinstance(client, Client):
            raise UserError(f"federation: client {number} is {client!r}; make it with Client")
        check_client_name(client.name, "federation")
        where = f"federation: client {client.name!r}"
        if not client.train:
            raise UserError(f"{where} has no training example; add some")
        for part, own in (("training", client.train), ("held-out", client.validation)):
            for place, example in enumerate(own, start=1):
                check_example(example, f"{where}, {part} example {place}")
        read_available(client.available, where)
    _check(federation, "federation")
    for _ in check_tests(federation.test, "federation: test instance"):
        pass


def _check(federation: Federation, where: str) -> None:
    if not federation.clients:
        raise UserError(f"{where} has no client")
    seen: dict[str, str] = {}
    for client in federation.clients:
        # Two names that differ in case alone would share a folder on some file systems.
        folded = client.name.lower()
        if folded in seen:
            raise UserError(f"{where}: client {client.name!r} is there twice ({seen[folded]!r})")
        seen[folded] = client.name
