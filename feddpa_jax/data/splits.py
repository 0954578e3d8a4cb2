"""The records of a data set with a client column, before and after they are examples."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from feddpa_jax.data.columns import Columns, of_tests
from feddpa_jax.data.records import check_client_name, to_example
from feddpa_jax.data.tables import Table
from feddpa_jax.types import Example, UserError


class Splits(NamedTuple):
    """The records of a data set, before they are examples.

    Attributes:
      path: as the user wrote it.
      options: split, test_split and client_column.
      train: training records.
      test: test records; None where there is no such split.
      columns: the data's name of a column by ours (`data.columns`).
    """

    path: str
    options: dict[str, str]
    train: Table
    test: Table | None
    columns: Mapping[str, str] | None = None

    def training(self) -> Iterator[tuple[str, Example]]:
        """Each record's client and example.

        Raises:
          UserError: there is none, or one is bad.
        """
        number, own = 0, Columns(self.columns)
        for number, record in enumerate(self.train.records, start=1):
            yield self.example(number, record, own)
        if not number:
            raise UserError(
                f"data.path: {self.path}: split {self.options['split']!r} has no record; name "
                "another data set or split"
            )

    def example(self, number: int, record: Any, own: Columns) -> tuple[str, Example]:
        """A training record's client and example.

        Args:
          number: of the record, from 1.
          record: what was read.
          own: takes the fields of all the split's records.

        Raises:
          UserError: it is bad.
        """
        source = f"{self.path}, split {self.options['split']}, record {number}"
        if not isinstance(record, dict):
            raise UserError(f"{source}: not an object with instruction and output")
        column = self.options["client_column"]
        client = check_client_name(_client_name(record.get(column), source, column), source)
        return client, to_example(record, source, task=client, columns=own)

    def tests(self) -> Iterator[Example]:
        """The test instances.

        Raises:
          UserError: the split is there and has none, or one is bad.
        """
        if self.test is None:
            return
        split, column = self.options["test_split"], self.options["client_column"]
        found = RecordsOfTests(self.test, f"{self.path}, split {split}", column, self.columns)
        number = 0
        for number, example in enumerate(found.examples(), start=1):  # noqa: B007 - it is looked at.
            yield example
        if not number:
            raise UserError(
                f"data.path: {self.path}: split {split!r} has no record; leave it out, or name "
                "another as test_split"
            )


class RecordsOfTests(NamedTuple):
    """Records of test instances, before they are examples.

    Attributes:
      table: the records.
      source: file and split, for messages.
      column: that of clients, whose names are the tasks of records that name none.
      columns: the data's name of a column by ours (`data.columns`).
    """

    table: Table
    source: str
    column: str
    columns: Mapping[str, str] | None

    def examples(self) -> Iterator[Example]:
        """The test instances.

        Raises:
          UserError: one is bad.
        """
        own = Columns(of_tests(self.columns))
        for number, record in enumerate(self.table.records, start=1):
            yield self.example(number, record, own)

    def example(self, number: int, record: Any, own: Columns) -> Example:
        """A test instance; as of `Splits.example`."""
        where = f"{self.source}, record {number}"
        example = to_example(record, where, columns=own)
        if example.task:
            return example
        if record.get(self.column) is None:
            raise UserError(
                f"{where}: names no 'task', and no client in column {self.column!r}; add one, or "
                "name the column of tasks with data.columns"
            )
        task = _client_name(record.get(self.column), where, self.column)
        return dataclasses.replace(example, task=task)


def _client_name(value: Any, source: str, column: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(
            f"{source}: column {column!r} is {value!r}, not a client's name or whole number"
        )
    return str(value)
