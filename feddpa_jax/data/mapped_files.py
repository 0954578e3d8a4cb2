"""Arrays and Arrow tables whose files are mapped into memory; what is damaged is named."""

from pathlib import Path
from typing import Any

import numpy as np

from feddpa_jax.data.seal import UnsealedError, what_is_wrong


def open_array(file: Path, *, mapped: bool = True) -> np.ndarray:
    """An array of a NumPy file.

    Args:
      file: the file.
      mapped: it is mapped into memory; else it is read.

    Raises:
      UnsealedError: it is missing, cannot be read, or holds no array.
    """
    try:
        return np.load(file, mmap_mode="r" if mapped else None)
    except OSError as error:
        raise UnsealedError(what_is_wrong(file, error)) from None
    except Exception:  # What NumPy says of a damaged header has no common base, and misleads.
        raise UnsealedError(f"{file.name} is damaged") from None


def read_table(file: Path) -> Any:
    """A table of an Arrow file that is mapped into memory.

    Raises:
      UnsealedError: it is missing, cannot be read, or holds no table.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as source:
            return pa.ipc.open_stream(source).read_all()
    except pa.ArrowException:
        raise UnsealedError(f"{file.name} is damaged") from None
    except OSError as error:
        raise UnsealedError(what_is_wrong(file, error)) from None
