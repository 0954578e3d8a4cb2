"""CSV, JSON and Parquet files as records, with every value exactly as written.

`datasets` guesses types: `007` becomes 7, `NA` becomes null, and a column of `2024-01-01` dates.
Here all values of a CSV file are text; a JSON file marks its texts itself.
"""

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from feddpa_jax.files.json_list import stream_list
from feddpa_jax.files.problems import reason
from feddpa_jax.files.strict_json import parse_json, read_json, read_text
from feddpa_jax.types import UserError

# By a file's ending, its kind and the separator of its columns.
KINDS = {
    **dict.fromkeys((".jsonl", ".json"), ("json", ",")),
    **{".csv": ("csv", ","), ".tsv": ("csv", "\t"), ".parquet": ("parquet", ",")},
}


class Table(NamedTuple):
    """Records of one split.

    Attributes:
      columns: their names.
      records: mappings from columns to values; where a column is missing, there is no value.
    """

    columns: Sequence[str]
    records: Iterable[Any]


def read_tables(files: Sequence[Path], kind: str, *, separator: str = ",") -> Table:
    """The records of some files, one after the other.

    Args:
      files: "csv" with a header; "json": one list of objects, or one object per line; "parquet".
      kind: which of the three.
      separator: between a CSV file's columns.

    Raises:
      UserError: a file is broken, with its line; or two CSV or Parquet files differ in their
        columns.
    """
    if kind == "json":
        records = [record for file in files for record in _json_records(file)]
        columns = dict.fromkeys(
            name for record in records if isinstance(record, dict) for name in record
        )
        return Table(list(columns), records)
    columns, records = [], []
    for number, file in enumerate(files):
        its_columns, its_records = (
            _parquet_records(file) if kind == "parquet" else _csv_records(file, separator)
        )
        if number and sorted(its_columns) != sorted(columns):
            raise UserError(
                f"{file}: has columns {its_columns}, and {files[0]} has {columns}; give all files "
                "of a split the same columns"
            )
        columns = its_columns
        records += its_records
    return Table(columns, records)


def stream_table(file: Path, kind: str, *, separator: str = ",") -> Table:
    """As `read_tables` of one file, which is read record by record as the records are asked for.

    The columns of a JSON file are those of the first record.

    Args:
      file: the file.
      kind: "csv", "json" or "parquet".
      separator: between a CSV file's columns.

    Raises:
      UserError: as `read_tables`; of a later line once the records get there.
    """
    if kind == "parquet":
        return _parquet_rows(file)
    if kind == "csv":
        columns, records = _csv_rows(file, separator)
        return Table(columns, records)
    records = stream_list(file) if holds_list(file) else _json_lines(file)
    first = next(records, None)
    if first is None:
        return Table((), ())
    columns = list(first) if isinstance(first, dict) else []
    return Table(columns, itertools.chain([first], records))


def holds_list(file: Path) -> bool:
    """Whether a JSON file begins as a list does, not as lines of objects."""
    with file.open(encoding="utf-8", errors="replace") as text:
        return text.read(4096).lstrip("\ufeff \t\r\n").startswith("[")


def _lines(file: Path) -> Iterator[str]:
    """The lines of a file, one by one."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            yield from text
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text ({error.reason}); convert it") from None


def _json_lines(file: Path) -> Iterator[Any]:
    # Only line feeds end a line: JSON texts may hold other separators, such as U+2028.
    with file.open("rb") as raw:
        for number, line in enumerate(raw, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file}, line {number}: is not UTF-8 text ({error.reason}); convert the file"
                ) from None
            if text.strip():
                yield parse_json(text, str(file), line=number, finite=False)


def _json_records(file: Path) -> list[Any]:
    text = read_text(file)
    if text.lstrip().startswith("["):
        return list(read_json(file, finite=False))
    return [
        parse_json(line, str(file), line=number, finite=False)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def _parquet_rows(file: Path) -> Table:
    """The records of a Parquet file, some thousands of which are in memory at once."""
    import pyarrow.parquet

    try:
        opened = pyarrow.parquet.ParquetFile(file)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _not_parquet(file, error) from None

    def records() -> Iterator[dict[str, Any]]:
        try:
            for batch in opened.iter_batches():
                yield from batch.to_pylist()
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise _not_parquet(file, error) from None

    return Table(opened.schema_arrow.names, records())


def _not_parquet(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file}: not a Parquet file that can be read ({reason(error)}); get the file again"
    )


def _parquet_records(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            table = opened.read()
        return table.column_names, table.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _not_parquet(file, error) from None


def _csv_records(file: Path, separator: str) -> tuple[list[str], list[dict[str, str]]]:
    text = io.StringIO(read_text(file), newline="")
    columns, records = _csv_rows(file, separator, text)
    return columns, list(records)


def _csv_rows(
    file: Path, separator: str, lines: Iterable[str] | None = None
) -> tuple[list[str], Iterator[dict[str, str]]]:
    """The columns of a CSV file, and its records one by one."""
    # Texts may be longer than the csv module allows by default.
    csv.field_size_limit(2**31 - 1)
    given = _lines(file) if lines is None else lines
    reader = csv.reader(given, delimiter=separator, strict=True)
    rows = _filled(file, reader)
    columns = next(rows, [])
    if not columns:
        raise UserError(f"{file}: is empty; give it a header and records")
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise UserError(f"{file}: column {twice[0]!r} appears twice; rename one")

    def records() -> Iterator[dict[str, str]]:
        for row in rows:
            if len(row) != len(columns):
                raise UserError(
                    f"{file}, line {reader.line_num}: has {len(row)} fields, and the header has "
                    f"{len(columns)}; quote a text that holds {separator!r} or a new line"
                )
            yield dict(zip(columns, row, strict=True))

    return columns, records()


def _filled(file: Path, reader: Any) -> Iterator[list[str]]:
    """The rows of a CSV file, without those of separators alone, which spreadsheets write."""
    try:
        for row in reader:
            if any(row):
                yield row
    except csv.Error as error:
        raise UserError(
            f"{file}, line {reader.line_num}: broken CSV: {error}; correct the file"
        ) from None
