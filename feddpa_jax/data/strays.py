"""Files that look like data and would not be read: they are refused, not passed over."""

import re
from collections.abc import Callable
from pathlib import Path

from feddpa_jax.types import UserError

_DATA = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow)(\.(gz|zip|zst|bz2|xz))?")
_NAMED = re.compile(r"(?<![a-z])(train|training|tests?|testing)(?![a-z])")


def refuse_strays(
    folder: Path, is_read: Callable[[str], bool], remedy: str, *, tests_alone: bool = False
) -> None:
    """Refuses a folder in which something looks like data and is not read.

    That is a file of records by its ending whose name says train or test, any `.jsonl` file, and
    what is neither file nor folder. Hidden files are passed over.

    Args:
      folder: the folder.
      is_read: whether the file of a name is read.
      remedy: what the user should do.
      tests_alone: look for test files alone, in a folder that is not only for data.

    Raises:
      UserError: there is one.
    """
    for path in sorted(folder.iterdir()):
        name = path.name
        if name.startswith(".") or is_read(name):
            continue
        if _looks_like_data(name.lower(), tests_alone):
            raise UserError(f"{path}: looks like data, and is not read; {remedy}")
        if not tests_alone and not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: is neither file nor folder, or a broken link; {remedy}")


def _looks_like_data(name: str, tests_alone: bool) -> bool:
    ending = _DATA.search(name)
    if ending is None or ending.end() != len(name):
        return False
    named = _NAMED.search(name)
    if tests_alone:
        return named is not None and named[1].startswith("test")
    return named is not None or ending[1] == "jsonl"
