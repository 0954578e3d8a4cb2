"""What results say of themselves in a notebook: their kind, counts and main values, no arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

# So many names and lines are shown, and so many letters of a text.
_NAMES, _LINES, _LETTERS = 8, 12, 100


def short_repr(owner: object, *lines: str, **facts: Any) -> str:
    """An object in a few lines: `Kind(fact=value, ...)`, and what follows below it.

    Args:
      owner: the object.
      *lines: what follows, each on a line of its own; of many, the first.
      **facts: counts and names; what is None is left out, and of many names the first are shown.

    >>> print(short_repr(3, "odd", clients=8, loss=2 / 3, modes=("global", "local"), run=None))
    int(clients=8, loss=0.6667, modes=(global, local))
      odd
    >>> short_repr(3, names=[f"u{n}" for n in range(100)])
    'int(names=(u0, u1, u2, u3, u4, u5, u6, u7 and 92 more))'
    """
    told = ", ".join(f"{name}={_told(fact)}" for name, fact in facts.items() if fact is not None)
    more = [f"and {len(lines) - _LINES} more"] if len(lines) > _LINES else []
    shown = [_cut(" ".join(line.split())) for line in lines[:_LINES]]
    return "\n  ".join([f"{type(owner).__name__}({told})", *shown, *more])


def count_numbers(tree: Any) -> int:
    """How many numbers the arrays of nested mappings and sequences hold.

    >>> import numpy as np
    >>> count_numbers({"a": np.zeros((2, 3)), "b": [np.zeros(4), None]})
    10
    """
    if isinstance(tree, Mapping):
        return sum(map(count_numbers, tree.values()))
    if isinstance(tree, list | tuple):
        return sum(map(count_numbers, tree))
    return int(getattr(tree, "size", 0))


def shape_of(array: Any) -> str:
    """An array's type and shape.

    >>> import numpy as np
    >>> shape_of(np.zeros((2, 3), "float32"))
    'float32 [2, 3]'
    """
    return f"{array.dtype} {list(array.shape)}"


def _told(fact: Any) -> str:
    if isinstance(fact, float):
        return f"{fact:.4g}"
    if isinstance(fact, Mapping):
        return "{" + _some([f"{name}: {_told(value)}" for name, value in fact.items()]) + "}"
    if isinstance(fact, Sequence) and not isinstance(fact, str):
        return f"({_some([_cut(str(value)) for value in fact])})"
    return _cut(repr(fact))


def _some(parts: list[str]) -> str:
    more = f" and {len(parts) - _NAMES} more" if len(parts) > _NAMES else ""
    return ", ".join(parts[:_NAMES]) + more


def _cut(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 3]}..."
