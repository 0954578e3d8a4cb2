"""Which records of flat data can be trained on: the others would be refused by every later run."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from feddpa_jax.data.columns import FORMATS, OPTIONAL, Columns
from feddpa_jax.data.records import to_example
from feddpa_jax.files.escape import short
from feddpa_jax.types import UserError

if TYPE_CHECKING:
    import pyarrow

_log = logging.getLogger(__name__)

# Records that are in memory at once.
_AT_ONCE = 10_000
# What a text has that is not blank, as far as that is quickly seen.
_VISIBLE = r"[!-~]|[^\x{0}-\x{3000}]"


class Readable(NamedTuple):
    """Records that are examples.

    Attributes:
      table: those records; all records where none is an example.
      number_I: their numbers among all, from 0.
      left_out: how many others there are.
      wrong: why the first record is no example, where none is.
    """

    table: "pyarrow.Table"
    number_I: np.ndarray
    left_out: int = 0
    wrong: str = ""


def readable(table: "pyarrow.Table", source: str, columns: Mapping[str, str]) -> Readable:
    """The records that are examples, without others, such as those without an output.

    How many those are is told in a warning, with what is wrong with the first.

    Args:
      table: all records.
      source: what to call them.
      columns: the data's name of a column by ours (`data.columns`).
    """
    own, first = Columns(columns), ""
    good_I = np.ones(table.num_rows, bool)
    suspect_S = _suspects(table, columns)
    for start in range(0, len(suspect_S), _AT_ONCE):
        places = suspect_S[start : start + _AT_ONCE]
        for place, record in zip(places.tolist(), table.take(places).to_pylist(), strict=True):
            try:
                to_example(record, f"{short(source)}, record {place + 1}", columns=own)
            except UserError as error:
                first = first or str(error)
                good_I[place] = False
    number_I = np.flatnonzero(good_I)
    left_out = table.num_rows - len(number_I)
    if not len(number_I):
        _log.warning(f"no record can be trained on, so this division cannot be used; {first}")
        return Readable(table, np.arange(table.num_rows), wrong=first)
    if not left_out:
        return Readable(table, number_I)
    _log.warning(
        f"{left_out:,} of {table.num_rows:,} records cannot be trained on and are left out; the "
        f"first: {first}"
    )
    return Readable(table.take(number_I), number_I, left_out)


def _suspects(table: "pyarrow.Table", columns: Mapping[str, str]) -> np.ndarray:
    """Places of the records that may be no example: ascending, the first record always.

    Where all have one pair of columns of texts, only a text that is missing or blank makes a record
    none; millions of records are looked through in a second for those. Others are all suspect.
    """
    import pyarrow
    import pyarrow.compute

    # Its functions are made as it is imported.
    compute: Any = pyarrow.compute
    every = np.arange(table.num_rows)
    column_of = {name: name for name in table.column_names if name not in columns.values()}
    column_of |= columns
    forms = [asked for asked in FORMATS.values() if set(asked) & set(column_of)]
    named = [*(forms[0] if len(forms) == 1 else ()), *OPTIONAL]
    types = {name: table.schema.field(column_of[name]).type for name in named if name in column_of}
    texts = (pyarrow.string(), pyarrow.large_string())
    if len(forms) != 1 or len(forms[0]) != 2 or not set(forms[0]) <= set(types):
        return every
    if "available" in columns or any(own not in texts for own in types.values()):
        return every
    seen_I = np.ones(table.num_rows, bool)
    for name in forms[0]:
        found = compute.match_substring_regex(table.column(column_of[name]), _VISIBLE)
        seen_I &= found.fill_null(False).to_numpy()
    seen_I[0] = False
    return every[~seen_I]
