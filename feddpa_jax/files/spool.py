"""What grows with a population waits in temporary files, so that memory does not grow with it.

The files have no name: whatever ends the process, nothing of them is left.
"""

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from feddpa_jax.files.disk import writing


class SpooledRows:
    """Rows of an array that are added some at a time.

    >>> spool = SpooledRows()
    >>> for c in range(3):
    ...     spool.add(np.full((1, 2), c))
    >>> spool.whole().tolist()
    [[0, 0], [1, 1], [2, 2]]
    """

    def __init__(self, place: Path | None = None):
        """Args: the folder whose disk is used; the system's for temporary files if None."""
        self._place = place
        self._file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115 - it lives as long as this.
        self._rows = 0
        self._like = np.zeros((0,))

    def add(self, rows: np.ndarray) -> None:
        """Adds rows; all have the dtype and the other axes of the first ones.

        Raises:
          UserError: the disk is full.
        """
        if not self._rows:
            self._like = np.empty((0, *rows.shape[1:]), rows.dtype)
        assert (self._like.dtype, self._like.shape[1:]) == (rows.dtype, rows.shape[1:])
        with writing(self._place or Path(tempfile.gettempdir())):
            self._file.write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)

    def whole(self) -> np.ndarray:
        """All rows, mapped into memory: they are read from the disk as they are looked at."""
        with writing(self._place or Path(tempfile.gettempdir())):
            self._file.flush()
        shape = (self._rows, *self._like.shape[1:])
        if not np.prod(shape):
            return np.empty(shape, self._like.dtype)
        return np.memmap(self._file, self._like.dtype, "r", shape=shape)


class SpooledTexts(Sequence[list[str]]):
    """Lists of texts that are added one after the other, and read as they are asked for.

    >>> spool = SpooledTexts()
    >>> spool.add([["a", "b"], []])
    >>> spool.add([["c"]])
    >>> len(spool), spool[0], spool[-1]
    (3, ['a', 'b'], ['c'])
    """

    def __init__(self, place: Path | None = None):
        """Args: the folder whose disk is used; the system's for temporary files if None."""
        self._place = place
        self._file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115 - it lives as long as this.
        self._ends = [0]

    def add(self, lists: Iterable[Sequence[str]]) -> None:
        """Adds lists of texts.

        Raises:
          UserError: the disk is full.
        """
        with writing(self._place or Path(tempfile.gettempdir())):
            self._file.seek(self._ends[-1])
            for texts in lists:
                self._ends.append(self._ends[-1] + self._file.write(json.dumps(texts).encode()))

    def __len__(self) -> int:
        """The number of lists."""
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> list[str]: ...

    @overload
    def __getitem__(self, place: slice) -> list[list[str]]: ...

    def __getitem__(self, place: int | slice) -> list[str] | list[list[str]]:
        """A list, or several."""
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        at = range(len(self))[place]
        self._file.seek(self._ends[at])
        return json.loads(self._file.read(self._ends[at + 1] - self._ends[at]))
