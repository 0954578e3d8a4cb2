"""Reads and checks the records of data files; every mistake is named with file and line."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from feddpa_jax.data.available import read_available
from feddpa_jax.data.columns import Columns
from feddpa_jax.data.conversations import read_turns
from feddpa_jax.data.tables import KINDS, read_tables
from feddpa_jax.files.escape import short
from feddpa_jax.files.strict_json import is_text, parse_json, read_json, read_text
from feddpa_jax.types import Example, Turn, UserError

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


def check_client_name(name: str, source: str) -> str:
    """The name, if it can serve as a folder's name.

    Raises:
      UserError: it cannot.
    """
    if not isinstance(name, str) or not _SAFE_NAME.fullmatch(name):
        raise UserError(
            f"{source}: client name {name!r} cannot be a folder's name; use up to 64 letters, "
            "digits, '.', '_' and '-', not starting with '.' or '-'"
        )
    return name


def to_example(
    record: Any, source: str, *, task: str = "", columns: Columns | None = None
) -> Example:
    """A checked example.

    Args:
      record: what was read.
      source: file and line, for messages.
      task: the task of records that name none.
      columns: of the record's file; None for a record that stands alone.

    Raises:
      UserError: not an object, no format's fields, or one is missing, empty or not text. Other
        fields may hold anything.
    """
    if not isinstance(record, dict):
        raise UserError(
            f"{source}: not an object with instruction and output; give it these fields"
        )
    fields = (columns or Columns()).fields(record, source)
    optional = {name: _text(fields.get(name), name, source) for name in _OPTIONAL}
    history, instruction, output = _asked(fields, source)
    if optional["system"]:
        if history and history[0].role == "system":
            raise UserError(f"{source}: has a system column and a system turn; leave out one")
        history = (Turn("system", optional["system"]), *history)
    for name, text in (("instruction", instruction), ("output", output), *optional.items()):
        _check_text(text, f"{source}: field {name!r}")
    for number, turn in enumerate(history, start=1):
        _check_text(turn.text, f"{source}: turn {number}")
    return Example(
        instruction=instruction,
        output=output,
        input=optional["input"],
        task=optional["task"] or task,
        category=optional["category"],
        history=history,
        available=read_available(fields.get("available"), source),
    )


_OPTIONAL = ("input", "task", "category", "system")


def _asked(fields: Mapping[str, Any], source: str) -> tuple[tuple[Turn, ...], str, str]:
    """The turns before the instruction, the instruction, and its answer."""
    for name in ("messages", "conversations"):
        if name in fields:
            turns = read_turns(_given(fields, name, source), f"{source}: field {name!r}")
            return turns[:-2], turns[-2].text, turns[-1].text
    asked, answered = list(fields)[:2]
    given = [_given(fields, name, source) for name in (asked, answered)]
    if asked == "prompt" and all(isinstance(value, list) for value in given):
        turns = read_turns([*given[0], *given[1]], f"{source}: field 'prompt' with 'completion'")
        return turns[:-2], turns[-2].text, turns[-1].text
    for name, value in zip((asked, answered), given, strict=True):
        if not isinstance(value, str):
            raise _no_text(value, name, source)
        if not value.strip():
            raise UserError(f"{source}: field {name!r} is empty; give it a text")
    return (), given[0], given[1]


def _given(fields: Mapping[str, Any], name: str, source: str) -> Any:
    if fields[name] is None:
        raise UserError(
            f"{source}: no field {name!r}; give it one, or name its column in data.columns"
        )
    return fields[name]


def _text(value: Any, name: str, source: str) -> str:
    """An optional field's text; empty where there is none."""
    if value is None or value != value:  # NaN: how data frames write that there is none.
        return ""
    if not isinstance(value, str):
        raise _no_text(value, name, source)
    return value


def _no_text(value: Any, name: str, source: str) -> UserError:
    """What is said of a field that holds something else."""
    return UserError(
        f"{source}: field {name!r} is {short(repr(value))}, not text; write it as text"
    )


def _check_text(text: str, what: str) -> None:
    if text and not is_text(text):
        raise UserError(f"{what} holds half of a surrogate pair, no text; correct it")


Names = Mapping[str, str]


def to_examples(
    records: Iterable[tuple[str, Any]], *, task: str = "", columns: Names | None = None
) -> tuple[Example, ...]:
    """The examples of one file's records, each with its file and line; they have one format.

    Args:
      records: pairs of source and record.
      task: the task of records that name none.
      columns: the data's name of a column by ours (`data.columns`).

    Raises:
      UserError: a bad record.
    """
    own = Columns(columns)
    return tuple(to_example(record, source, task=task, columns=own) for source, record in records)


def read_json_list(
    path: Path, *, task: str = "", columns: Names | None = None
) -> tuple[Example, ...]:
    """The examples of a file that holds one JSON list.

    Raises:
      UserError: broken JSON (with its line), no list, or a bad record (with its number).
    """
    records = read_json(path, finite=False)
    if not isinstance(records, list):
        raise UserError(f"{path}: holds no JSON list of records; make it one")
    numbered = ((f"{path}, record {n}", record) for n, record in enumerate(records, start=1))
    return to_examples(numbered, task=task, columns=columns)


def read_json_lines(
    path: Path, *, task: str = "", columns: Names | None = None
) -> tuple[Example, ...]:
    """The examples of a file with one JSON object per line; empty lines are skipped.

    Raises:
      UserError: broken JSON or a bad record, with its line.
    """
    numbered = (
        (f"{path}, line {number}", parse_json(line, str(path), line=number, finite=False))
        for number, line in json_lines(path)
    )
    return to_examples(numbered, task=task, columns=columns)


def read_file(path: Path, *, task: str = "", columns: Names | None = None) -> tuple[Example, ...]:
    """The examples of a file whose ending says what it is: one of `tables.KINDS`.

    Raises:
      UserError: the file is broken, or a bad record.
    """
    if path.suffix.lower() == ".jsonl":
        return read_json_lines(path, task=task, columns=columns)
    kind, separator = KINDS[path.suffix.lower()]
    table = read_tables([path], kind, separator=separator)
    numbered = ((f"{path}, record {n}", record) for n, record in enumerate(table.records, start=1))
    return to_examples(numbered, task=task, columns=columns)


def json_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not empty, with their numbers.

    Raises:
      UserError: it is missing, or no UTF-8 text.
    """
    # Only line feeds end a line: JSON texts may hold other separators, such as U+2028.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line
