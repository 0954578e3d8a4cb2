"""Loads federations: the sample, the paper's folders, client folders, Hugging Face data sets."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Optional

import numpy as np
from annotated_types import Ge

from feddpa_jax.checked_settings import Count, check_value
from feddpa_jax.data.conversations import check_history
from feddpa_jax.data.hub import load_hub, load_tests, user_path
from feddpa_jax.data.records import (
    check_client_name,
    read_file,
    read_json_lines,
    read_json_list,
    to_example,
)
from feddpa_jax.data.sample import sample_federation
from feddpa_jax.data.strays import is_of_system, refuse_strays
from feddpa_jax.data.tables import KINDS
from feddpa_jax.files.escape import short
from feddpa_jax.types import Client, Example, Federation, Source, UserError, client_id

# What `data.path` says of a federation that was made in memory.
IN_MEMORY = "in memory"


def load_federation(
    path: str,
    *,
    seed: int = 0,
    max_train: int | None = None,
    validation: int = 0,
    max_test: int | None = None,
    columns: Mapping[str, str] | None = None,
    test_path: str | None = None,
) -> Federation:
    """Loads all clients and test instances.

    Args:
      path: one of
        - "sample": eight small built-in tasks, made from the seed;
        - a folder with `<N>/local_training_{k}.json` and `*test*.jsonl` (the paper's layout;
          clients are named client_0, client_1, ...), or its `<N>` folder;
        - a folder with `clients/<name>/train.jsonl` and optionally `test.jsonl`, or the same files
          as `.json`, `.csv`, `.tsv` or `.parquet`;
        - "hf:NAME?client_column=COLUMN": a data set of the hub or on disk (see `load_hub`).
      seed: of the sample, and of the choices that `max_train`, `validation` and `max_test` make.
      max_train: most examples per client, chosen by its name and the seed.
      validation: how many of these each client holds out, chosen in the same way.
      max_test: most test instances per task, chosen by its name and the seed.
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
    try:
        if path == "sample":
            federation = sample_federation(seed)
        elif path.startswith("hf:"):
            federation = load_hub(path, columns)
        else:
            federation = _load_folder(user_path(path), columns)
        if test_path is not None:
            federation = dataclasses.replace(federation, test=load_tests(test_path, columns))
    except OSError as error:
        # Such as a name that is too long, or a folder that may not be listed.
        raise UserError(f"data.path: {short(path)}: cannot be read: {error.strerror}") from None
    _check(federation, f"data.path: {path}")
    return Federation(
        clients=tuple(
            _hold_out(
                Client(client.name, _some(client.train, max_train, seed, client.name)),
                validation,
                seed,
            )
            for client in federation.clients
        ),
        test=_some_per_task(federation.test, max_test, seed),
        source=Source(
            *(path, seed, max_train, validation, max_test),
            columns=tuple(sorted((columns or {}).items())),
            test_path=test_path,
        ),
    )


def _load_folder(folder: Path, columns: Mapping[str, str] | None) -> Federation:
    if not folder.exists():
        raise UserError(f"data.path: {folder} does not exist; name a folder, sample, or hf:NAME")
    if not folder.is_dir():
        raise UserError(
            f"data.path: {folder} is not a folder; a file with a column of clients is named as "
            f"hf:{folder}?client_column=COLUMN"
        )
    numbered = [p for p in folder.iterdir() if p.is_dir() and _is_number(p.name)]
    if (folder / "clients").is_dir():
        _refuse_beside_clients(folder, ("test", "local"), all_lines=False)
        return _client_folders(folder / "clients", columns)
    if os.path.lexists(folder / "local_training_0.json"):
        if inner := [p for p in numbered if (p / "local_training_0.json").is_file()]:
            raise UserError(
                f"data.path: {folder} holds clients' files, and so does {inner[0]}; name the one "
                "that you mean, and move the other elsewhere"
            )
        return _paper_layout(folder, columns)
    if len(numbered) > 1:
        names = ", ".join(sorted(p.name for p in numbered))
        raise UserError(f"data.path: {folder} holds several federations ({names}); name one")
    if numbered:
        return _paper_layout(numbered[0], columns)
    raise UserError(
        f"data.path: {folder} has no <N>/local_training_0.json and no clients/<name>/train.jsonl"
    )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


_TRAINING = re.compile(r"local_training_(0|[1-9][0-9]*)\.json")


def _is_test(name: str) -> bool:
    return "test" in name and name.endswith(".jsonl") and not name.startswith(".")


def _paper_layout(folder: Path, columns: Mapping[str, str] | None) -> Federation:
    numbers = sorted(
        int(match[1]) for path in folder.iterdir() if (match := _TRAINING.fullmatch(path.name))
    )
    # "." and ".." are called what they stand for.
    named = Path(os.path.abspath(folder))
    remedy = "files are local_training_<k>.json and *test*.jsonl; rename or remove it"
    refuse_strays(
        folder,
        lambda name: bool(_TRAINING.fullmatch(name)) or _is_test(name),
        remedy,
        words=("test", "local"),
        all_lines=True,
    )
    expected = int(named.name) if _is_number(named.name) else len(numbers)
    for k in range(max(expected, len(numbers))):
        if k not in numbers:
            raise UserError(
                f"{folder}: no local_training_{k}.json, though the folder is for {expected} clients"
            )
    if len(numbers) > expected:
        raise UserError(
            f"{folder}: holds {len(numbers)} clients, though the folder is for {expected}; "
            "rename the folder or take the others out"
        )
    clients = tuple(
        _client(f"client_{k}", folder / f"local_training_{k}.json", read_json_list, columns)
        for k in numbers
    )
    # Only an <N> folder has its tests beside it; another folder's neighbours are strangers.
    places = (named.parent, named) if _is_number(named.name) else (named,)
    refuse_strays(places[0], _is_test, remedy, words=("test",), all_lines=False)
    files = sorted(file for place in places for file in place.iterdir() if _is_test(file.name))
    return Federation(
        clients, tuple(example for file in files for example in _tests(file, columns))
    )


def _client(
    name: str,
    file: Path,
    read: Callable[..., tuple[Example, ...]],
    columns: Mapping[str, str] | None,
) -> Client:
    train = read(file, task=name, columns=columns)
    if not train:
        raise UserError(f"{file}: client {name!r} has no training example; add some or remove it")
    return Client(name, train)


def _tests(file: Path, columns: Mapping[str, str] | None) -> tuple[Example, ...]:
    examples = read_json_lines(file, columns=columns)
    for number, example in enumerate(examples, start=1):
        if not example.task:
            raise UserError(f"{file}: test instance {number} names no 'task'; add the field")
    return _some_tests(file, examples)


def _some_tests(file: Path, examples: tuple[Example, ...]) -> tuple[Example, ...]:
    if not examples:
        raise UserError(f"{file}: holds no test instance; add some or remove the file")
    return examples


def _refuse_beside_clients(folder: Path, words: Sequence[str], *, all_lines: bool) -> None:
    remedy = "records go into clients/<name>/; move or remove it"
    refuse_strays(folder, lambda _: False, remedy, words=words, all_lines=all_lines)


def _client_folders(folder: Path, columns: Mapping[str, str] | None) -> Federation:
    clients, test = [], []
    _refuse_beside_clients(folder, ("train", "test"), all_lines=True)
    for place in sorted(p for p in folder.iterdir() if p.is_dir() and not is_of_system(p.name)):
        name = check_client_name(place.name, str(folder))
        train, tests = (_of_client(place, part) for part in ("train", "test"))
        refuse_strays(
            place,
            lambda file, read=(train.name, tests.name): file in read,
            "a client's files are train.jsonl and test.jsonl; rename or remove it",
            words=("train", "test"),
            all_lines=True,
        )
        if not os.path.lexists(train):
            raise UserError(f"{place}: no train.jsonl; every client needs one")
        clients.append(_client(name, train, read_file, columns))
        if os.path.lexists(tests):
            test += _some_tests(tests, read_file(tests, task=name, columns=columns))
    return Federation(tuple(clients), tuple(test))


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
        _check_examples(client.train, f"{where}, training example")
        _check_examples(client.validation, f"{where}, held-out example")
    _check(federation, "federation")
    _check_examples(federation.test, "federation: test instance")
    for number, example in enumerate(federation.test, start=1):
        if not example.task:
            raise UserError(f"federation: test instance {number} has no task; name it")


def _check_examples(examples: Sequence[Example], what: str) -> None:
    for number, example in enumerate(examples, start=1):
        if not isinstance(example, Example):
            raise UserError(f"{what} {number} is {example!r}; make it with Example")
        check_history(example.history, f"{what} {number}")
        found = to_example(dataclasses.asdict(example), f"{what} {number}")
        if dataclasses.replace(found, history=example.history) != example:
            raise UserError(f"{what} {number} has a field that is None; leave it out")


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


def _some(
    examples: tuple[Example, ...], most: int | None, seed: int, name: str
) -> tuple[Example, ...]:
    if most is None or len(examples) <= most:
        return examples
    rng = np.random.default_rng([seed, client_id(name)])
    return tuple(examples[i] for i in np.sort(rng.permutation(len(examples))[:most]))


def _hold_out(client: Client, validation: int, seed: int) -> Client:
    """The client with `validation` of its examples set aside; both parts keep their order."""
    count = len(client.train)
    if count <= validation:
        raise UserError(
            f"data.validation: client {client.name!r} has {count} training examples, and "
            f"{validation} held out leave none to train on; lower it below {count}"
        )
    # 1 sets this draw apart from that of `max_train`.
    rng = np.random.default_rng([seed, client_id(client.name), 1])
    held = set(rng.permutation(count)[:validation].tolist())
    return Client(
        client.name,
        tuple(e for i, e in enumerate(client.train) if i not in held),
        tuple(client.train[i] for i in sorted(held)),
    )


def _some_per_task(
    examples: tuple[Example, ...], most: int | None, seed: int
) -> tuple[Example, ...]:
    kept = {
        id(example)
        for task in {example.task for example in examples}
        for example in _some(tuple(e for e in examples if e.task == task), most, seed, task)
    }
    return tuple(example for example in examples if id(example) in kept)
