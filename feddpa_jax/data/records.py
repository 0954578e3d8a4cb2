"""Reads and checks the records of data files; every mistake is named with file and line."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from feddpa_jax.files.strict_json import is_text, parse_json, read_json, read_text
from feddpa_jax.types import Example, UserError

_FIELDS = ("instruction", "output", "input", "task", "category")
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


def to_example(record: Any, source: str, *, task: str = "") -> Example:
    """A checked example.

    Args:
      record: what was read.
      source: file and line, for messages.
      task: the task of records that name none.

    Raises:
      UserError: not an object, or a field is missing, empty or not text. Other fields may hold
        anything.
    """
    if not isinstance(record, dict):
        raise UserError(f"{source}: not an object with instruction and output")
    for name in record:
        # Other fields are the user's own; this one is most likely a misspelling.
        if name not in _FIELDS and name.strip().lower() in _FIELDS:
            raise UserError(
                f"{source}: field {name!r} is not read; call it {name.strip().lower()!r}"
            )
    fields = {name: record.get(name) for name in _FIELDS}
    for name in ("instruction", "output"):
        value = fields[name]
        if value is None:
            raise UserError(f"{source}: no field {name!r}")
        if not isinstance(value, str):
            raise UserError(f"{source}: field {name!r} is {value!r}, not text")
        if not value.strip():
            raise UserError(f"{source}: field {name!r} is empty")
    for name in ("input", "task", "category"):
        value = fields[name]
        if value != value:  # NaN: how data frames write that there is none.
            fields[name] = value = None
        if value is not None and not isinstance(value, str):
            raise UserError(f"{source}: field {name!r} is {value!r}, not text")
    for name, value in fields.items():
        if value and not is_text(value):
            raise UserError(f"{source}: field {name!r} holds half of a surrogate pair, no text")
    return Example(
        instruction=str(fields["instruction"]),
        output=str(fields["output"]),
        input=fields["input"] or "",
        task=fields["task"] or task,
        category=fields["category"] or "",
    )


def read_json_list(path: Path, *, task: str = "") -> tuple[Example, ...]:
    """The examples of a file that holds one JSON list.

    Raises:
      UserError: broken JSON (with its line), no list, or a bad record (with its number).
    """
    records = read_json(path, finite=False)
    if not isinstance(records, list):
        raise UserError(f"{path}: holds no JSON list of records")
    return tuple(
        to_example(record, f"{path}, record {number}", task=task)
        for number, record in enumerate(records, start=1)
    )


def read_json_lines(path: Path, *, task: str = "") -> tuple[Example, ...]:
    """The examples of a file with one JSON object per line; empty lines are skipped.

    Raises:
      UserError: broken JSON or a bad record, with its line.
    """
    return tuple(
        to_example(record, f"{path}, line {number}", task=task)
        for number, record in _json_lines(path)
    )


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    # Only line feeds end a line: JSON texts may hold other separators, such as U+2028.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        yield number, parse_json(line, str(path), line=number, finite=False)
