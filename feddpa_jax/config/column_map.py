"""The map from what columns are to the names that the data have for them."""

from feddpa_jax.data.columns import wrong_columns


class ColumnMap(dict[str, str]):
    """Names of the data's columns by ours; it does not change, and has a hash.

    >>> ColumnMap(instruction="question")
    {'instruction': 'question'}
    """

    def __hash__(self) -> int:
        """Of the names."""
        return hash(tuple(sorted(self.items())))


def to_column_map(given: dict[str, str]) -> ColumnMap:
    """A checked map.

    Raises:
      ValueError: a name that is none of ours, or one of the data's twice.
    """
    if wrong := wrong_columns(given):
        raise ValueError(wrong)
    return ColumnMap(given)
