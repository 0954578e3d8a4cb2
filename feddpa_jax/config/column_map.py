"""The map from what columns are to the names that the data have for them."""

# What a column of the data may be.
_COLUMNS = (
    *("instruction", "output", "prompt", "completion", "messages", "conversations"),
    *("input", "task", "category", "system", "available"),
)


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
    for ours in given:
        if ours not in _COLUMNS:
            raise ValueError(f"{ours!r} is none of {', '.join(_COLUMNS)}; correct it")
    if len(set(given.values())) < len(given):
        raise ValueError("names one of the data's columns twice; name each once")
    return ColumnMap(given)
