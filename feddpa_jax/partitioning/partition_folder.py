"""A partition in a folder that `load_federation` reads, whatever the number of clients.

One file a split with a column of clients, instead of a folder a client: a hundred thousand clients
are written in seconds, and the records of each lie together. Parquet keeps all columns with their
types, is smaller than JSON lines, and is read column by column.
"""

import glob
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feddpa_jax.files.disk import (
    aside_of,
    clear_leftovers,
    is_leftover,
    make_folder,
    sync,
    sync_tree,
    to_json,
    write_new,
    writing,
)
from feddpa_jax.files.lock import hold
from feddpa_jax.types import UserError

if TYPE_CHECKING:
    import pyarrow

_log = logging.getLogger(__name__)

COLUMN = "client"
# Records that are written at a time.
_GROUP = 50_000


def check_folder(out: Path) -> None:
    """Refuses a folder that holds something, or could not be read; before anything is computed.

    Raises:
      UserError: what is there.
    """
    if out.exists() and not (out.is_dir() and all(map(is_leftover, out.iterdir()))):
        raise UserError(f"out: {out} is not empty; name a new folder")
    if glob.has_magic(str(out.absolute())):
        raise UserError(
            f"out: {out}: the path holds *, ? or [, which are patterns to the library that reads "
            "it; name another folder"
        )
    if os.path.ismount(out):
        raise UserError(f"out: {out} is a mount point; name a new folder in it")


def write_partition(
    out: Path,
    table: "pyarrow.Table",
    client_I: np.ndarray,
    test_I: np.ndarray,
    names: Sequence[str],
    settings: Mapping[str, Any],
    picture: str,
) -> None:
    """Writes a partition so that the folder is there whole or not at all.

    Args:
      out: the folder; new, or empty.
      table: the examples.
      client_I: each example's client, below 0 for none.
      test_I: whether it is a test instance.
      names: of the clients.
      settings: for `partition.json`.
      picture: of the clients, as SVG.

    Raises:
      UserError: the folder is not empty or cannot be written, or the examples have a column
        `client` that says something else.
    """
    check_folder(out)
    _check_column(table, client_I, names)
    place = out.resolve()
    aside = aside_of(place)
    with hold(place, "wait for it, or name another --out", _log.warning, shown=out):
        try:
            with writing(out):
                make_folder(place.parent)
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                for split, wanted_I in (("train", ~test_I), ("test", test_I)):
                    rows = np.flatnonzero((client_I >= 0) & wanted_I)
                    rows = rows[np.argsort(client_I[rows], kind="stable")]
                    if len(rows):
                        _write_rows(aside / f"{split}.parquet", table, rows, client_I, names)
                write_new(aside / "partition.json", to_json(settings).encode())
                write_new(aside / "clients.svg", picture.encode())
                sync_tree(aside)
                check_folder(out)
                clear_leftovers(out, locks=True)
                aside.rename(place)  # Over an empty folder, too.
                sync(place.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _check_column(table: "pyarrow.Table", client_I: np.ndarray, names: Sequence[str]) -> None:
    if COLUMN not in table.column_names:
        return
    told = table.column(COLUMN).to_pylist()
    if any(c >= 0 and str(told[i]) != names[c] for i, c in enumerate(client_I)):
        raise UserError(
            f"partition: the data have a column {COLUMN!r} that the partition's own would replace; "
            "rename it"
        )


def _write_rows(
    path: Path, table: "pyarrow.Table", rows: np.ndarray, client_I: np.ndarray, names: Sequence[str]
) -> None:
    """Writes some examples in an order, a group at a time."""
    import pyarrow
    from pyarrow import parquet

    others = table.drop_columns([COLUMN]) if COLUMN in table.column_names else table
    writer = None
    try:
        for start in range(0, len(rows), _GROUP):
            group = rows[start : start + _GROUP]
            own = pyarrow.array([names[c] for c in client_I[group]], pyarrow.string())
            taken = others.take(pyarrow.array(group)).add_column(0, COLUMN, own)
            if writer is None:
                writer = parquet.ParquetWriter(str(path), taken.schema, compression="zstd")
            writer.write_table(taken)
    finally:
        if writer is not None:
            writer.close()
