"""Flat data as an Arrow table: a file, or records in memory, that know nothing of clients yet."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feddpa_jax.data.hub import user_path
from feddpa_jax.data.tables import read_tables
from feddpa_jax.files.escape import short
from feddpa_jax.files.problems import reason
from feddpa_jax.types import Example, UserError

if TYPE_CHECKING:
    import pyarrow

_FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


def read_flat(data: Any) -> tuple["pyarrow.Table", str]:
    """All records of some data, and what to call them.

    Args:
      data: the path of a JSON-lines, JSON, CSV, TSV or Parquet file; or examples or mappings; or a
        pandas or Arrow table, or a data set of `datasets`. Texts of a CSV or JSON file are kept
        exactly as written.

    Raises:
      UserError: no such file, a broken one, one without a record, or a column of mixed types.
    """
    if isinstance(data, str) and data.startswith("hf:"):
        raise UserError(
            f"data.path: {short(data)}: only files are divided; save the data set as Parquet, or "
            "give it to fd.partition in Python"
        )
    if isinstance(data, str | Path):
        path = user_path(str(data))
        table, name = _read_file(path), path.name
    else:
        table, name = _of_memory(data), "in memory"
    if not table.num_rows:
        raise UserError(f"data.path: {short(name)}: has no record; name data with some")
    return table, name


def _read_file(path: Path) -> "pyarrow.Table":
    from pyarrow import parquet

    ending = path.suffix.lower()
    if not path.exists():
        built_in = "is the built-in data, whose clients are given" if str(path) == "sample" else ""
        raise UserError(
            f"data.path: {path} {built_in or 'does not exist'}; name a flat file to divide"
        )
    if path.is_dir() or ending not in _FORMATS:
        raise UserError(
            f"data.path: {path} is no file to divide; name one of {', '.join(_FORMATS)}"
        )
    if not path.is_file():  # Reading a pipe would wait for ever.
        raise UserError(f"data.path: {path} is a pipe or a device; write it into a file first")
    if ending == ".parquet":
        try:
            return parquet.ParquetFile(str(path)).read()
        except Exception as error:  # The library's errors have no common base.
            raise UserError(f"data.path: {path}: no Parquet file ({reason(error)})") from None
    kind = "json" if ending.startswith(".json") else "csv"
    found = read_tables([path], kind, separator="\t" if ending == ".tsv" else ",")
    return _of_records(found.columns, found.records, str(path))


def _of_memory(data: Any) -> "pyarrow.Table":
    import pyarrow

    if isinstance(data, pyarrow.Table):
        return data
    if hasattr(data, "with_format"):  # A data set of `datasets`.
        return data.with_format("arrow")[:]
    if hasattr(data, "to_records"):  # A pandas table; its index is no column.
        return pyarrow.Table.from_pandas(data, preserve_index=False)
    if not isinstance(data, Sequence):
        raise UserError(
            f"data: {short(repr(data))} is no data; give a file's path, a list of examples or "
            "mappings, or a table"
        )
    told = any(isinstance(one, Example) and one.history for one in data)
    records = [_record(one, told) if isinstance(one, Example) else one for one in data]
    return _of_records((), records, "data")


def _record(example: Example, told: bool) -> dict[str, Any]:
    """An example as a record that reads as the same one: with `told`, as a conversation."""
    record = dataclasses.asdict(example)
    del record["history"]
    if told:
        turns = [(turn.role, turn.text) for turn in example.history]
        turns += [("user", record.pop("instruction")), ("assistant", record.pop("output"))]
        record["messages"] = [{"role": role, "content": text} for role, text in turns]
    return record


def _of_records(columns: Sequence[str], records: Iterable[Any], source: str) -> "pyarrow.Table":
    """A table of mappings, which need not all have all columns.

    Args:
      columns: the first ones; the others are in the order in which they come.
      records: the mappings.
      source: for messages.
    """
    import pyarrow

    records = list(records)
    names = dict.fromkeys(columns)
    for number, record in enumerate(records, start=1):
        if not isinstance(record, Mapping):
            raise UserError(
                f"{source}, record {number}: {short(json.dumps(record, default=repr))} is no "
                "object with fields; give every record its fields"
            )
        names |= dict.fromkeys(record)
    arrays = {}
    for column in names:
        try:
            arrays[column] = pyarrow.array([record.get(column) for record in records])
        except (pyarrow.ArrowException, OverflowError, ValueError, TypeError) as error:
            raise _mixed(source, column, records, error) from None
    return pyarrow.table(arrays)


def _mixed(
    source: str, column: str, records: Sequence[Mapping[str, Any]], error: Exception
) -> UserError:
    """What is said of a column whose values have no type in common."""
    given = [(n, r[column]) for n, r in enumerate(records, start=1) if r.get(column) is not None]
    first, value = given[0]
    for number, other in given:
        if type(other) is not type(value):
            return UserError(
                f"{source}, record {number}: column {column!r} has {short(repr(other))}, which is "
                f"{_kind(other)}, and in record {first} {_kind(value)}; give it one type, or take "
                "it out"
            )
    return UserError(
        f"{source}: column {column!r} has values that no table holds ({reason(error)}); change "
        "them, or take it out"
    )


def _kind(value: Any) -> str:
    """A value's type, as users call it."""
    kinds = {str: "a text", bool: "true or false", int: "a number", float: "a number"}
    kinds |= {list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")
