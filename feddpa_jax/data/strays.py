"""Refuses files that look like data but would not be read, instead of skipping them."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from feddpa_jax.types import UserError

_DATA = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow)(\.(gz|zip|zst|bz2|xz))?")
# What a file's name may say, in small letters.
_WORDS = {
    "test": re.compile(r"(?<![a-z])(tests?|testing)(?![a-z])"),
    "train": re.compile(r"(?<![a-z])(train|training)(?![a-z])"),
    "local": re.compile(r"local.?train"),
}
# What lies beside data and is known to be none of theirs: other splits, and what is said of data.
_OTHER = re.compile(
    r"(?<![a-z])(validation|valid|val|dev|args|ids?|index|indices|info|log|loss|meta|metadata|"
    r"metrics|results|state|stats|statistics)(?![a-z])"
)
# Folders that operating systems make.
_OF_SYSTEMS = (
    *("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found"),
    "System Volume Information",
)


def is_of_system(name: str) -> bool:
    """Whether a folder of that name is hidden, or made by an operating system."""
    return name.startswith(".") or name in _OF_SYSTEMS


def refuse_strays(
    folder: Path,
    is_read: Callable[[str], bool],
    remedy: str,
    *,
    words: Sequence[str],
    all_lines: bool,
) -> None:
    """Refuses a folder with something that looks like data and is not read.

    That is a file of records by its ending whose name has one of some words. Passed over are hidden
    files, other formats of a file that is read (`train.json` beside `train.jsonl`), and names that
    say what else they are (`validation.jsonl`, `train_loss.csv`).

    Args:
      folder: the folder.
      is_read: whether the file of a name is read.
      remedy: what the user should do.
      words: of "test", "train" and "local", the paper's word for clients' files.
      all_lines: the folder is for data alone: refuse any `.jsonl` file too, and what is neither
        file nor folder.

    Raises:
      UserError: there is one.
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    read = {_stem(path.name) for path in paths if is_read(path.name)}
    for path in paths:
        name = path.name
        if is_read(name):
            continue
        if _stem(name) not in read and _looks_like_data(name.lower(), words, all_lines):
            raise UserError(f"{path}: looks like data, and is not read; {remedy}")
        if all_lines and not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: is neither file nor folder, or a broken link; {remedy}")


def _stem(name: str) -> str:
    return name.partition(".")[0]


def _looks_like_data(name: str, words: Sequence[str], all_lines: bool) -> bool:
    ending = _DATA.search(name)
    if ending is None or ending.end() != len(name) or _OTHER.search(name):
        return False
    return (all_lines and ending[1] == "jsonl") or any(_WORDS[word].search(name) for word in words)
