"""What a partitioner sees: the columns of the examples, and what is asked for."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from feddpa_jax.short_repr import short_repr
from feddpa_jax.types import UserError

if TYPE_CHECKING:
    import pyarrow


class Labels(NamedTuple):
    """A column whose values are labels.

    Attributes:
      names: the distinct values as text, sorted.
      label_I: of each example, the place of its value in `names`: int64 [I].
    """

    names: tuple[str, ...]
    label_I: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """The examples of each label: int64 [K]."""
        return np.bincount(self.label_I, minlength=len(self.names))


@dataclasses.dataclass(frozen=True)
class Pool:
    """I examples that are divided among C clients.

    Attributes:
      table: all columns, in the order of the examples.
      clients: how many clients are asked for; None if nobody said.
      minimum: fewest examples that a client may have.
      number_I: the examples' numbers among all records, from 0, where some were left out.
    """

    table: "pyarrow.Table"
    clients: int | None
    minimum: int
    number_I: np.ndarray | None = None

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        return short_repr(
            self,
            examples=self.examples,
            columns=self.table.column_names,
            clients=self.clients,
            minimum=self.minimum,
        )

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return self.table.num_rows

    def needed_clients(self) -> int:
        """How many clients are asked for, each of which can have its fewest examples.

        Raises:
          UserError: nobody said, or there are too few examples.
        """
        if self.clients is None:
            raise UserError("clients: this partition needs a number of clients; give one")
        if self.clients * self.minimum > self.examples:
            most = self.examples // self.minimum
            remedy = f"lower it to {most} at most" if most else "lower minimum"
            raise UserError(
                f"clients: {self.clients} with at least {self.minimum} of the {self.examples} "
                f"examples each are too many; {remedy}"
            )
        return self.clients

    def values(self, column: str) -> list[Any]:
        """A column's values, in the order of the examples.

        Raises:
          UserError: there is no such column.
        """
        self._check(column)
        return self.table.column(column).to_pylist()

    def labels(
        self, column: str, *, field: str = "partition", missing: str | None = None
    ) -> Labels:
        """A column whose values are labels: texts, numbers, or true and false.

        Args:
          column: its name.
          field: what names it, for messages.
          missing: the label of examples without a value; None if all must have one.

        Raises:
          UserError: there is no such column, or one of its values is missing or a list.
        """
        import pyarrow
        import pyarrow.compute

        # Its functions are made as it is imported.
        compute: Any = pyarrow.compute
        self._check(column, field)
        values = self.table.column(column).combine_chunks()
        kind = values.type.value_type if pyarrow.types.is_dictionary(values.type) else values.type
        if pyarrow.types.is_nested(kind):
            raise UserError(
                f"{field}: column {column!r} holds lists or objects; name a column of texts or "
                "numbers"
            )
        values = values.cast(kind)
        missing_I = values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False).copy()
        texts = values.cast(pyarrow.large_string()).fill_null("")
        missing_I |= compute.equal(texts, "").to_numpy(zero_copy_only=False)
        if missing is not None:
            texts = compute.if_else(pyarrow.array(missing_I), missing, texts)
        elif missing_I.any():
            place = int(missing_I.argmax())
            number = place if self.number_I is None else int(self.number_I[place])
            raise UserError(
                f"{field}: record {number + 1} has no value in column {column!r}; "
                "give all records one, or name another column"
            )
        coded = texts.dictionary_encode()
        names = coded.dictionary.to_pylist()
        order = sorted(range(len(names)), key=names.__getitem__)
        place = np.empty(len(names), np.int64)
        place[order] = np.arange(len(names))
        return Labels(tuple(names[i] for i in order), place[coded.indices.to_numpy()])

    def has_labels(self, column: str) -> bool:
        """Whether there is such a column, of texts or numbers."""
        import pyarrow

        names: Sequence[str] = self.table.column_names
        return column in names and not pyarrow.types.is_nested(self.table.schema.field(column).type)

    def _check(self, column: str, field: str = "partition") -> None:
        names: Sequence[str] = self.table.column_names
        if column not in names:
            raise UserError(
                f"{field}: the data have no column {column!r}; name one of {', '.join(names)}"
            )
