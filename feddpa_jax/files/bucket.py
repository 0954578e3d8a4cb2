"""Run folders in an object store, `gs://bucket/path`: what is other there than on a disk.

An object is there whole or not at all, and what is written stays. Nothing can be renamed, locked
or made private, and a folder is only the beginning of names. So nothing is written aside, and a
checkpoint exists from the moment its manifest does, which is written last and removed first.
"""

import os
from pathlib import Path
from typing import Any, cast

from feddpa_jax.types import UserError

SCHEME = "gs://"


def folder_at(name: str | Path) -> Path:
    """A folder by its name: on a disk, or in a bucket.

    In a bucket it is an `etils.epath.Path`, which has the methods of pathlib's that are used here.

    Raises:
      UserError: the scheme is not known, or the package that it needs is not there.
    """
    text = os.fspath(name)
    if "://" not in text:
        return Path(text)
    if not text.startswith(SCHEME):
        raise UserError(f"{text}: is neither a folder nor in a bucket ({SCHEME}...)")
    import fsspec
    from etils import epath

    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError:
        raise UserError(f"{text}: needs the package gcsfs; pip install gcsfs") from None
    return cast(Path, epath.Path(text))


def in_bucket(path: Any) -> bool:
    """Whether a path leads into a bucket.

    >>> in_bucket(Path("runs/a"))
    False
    """
    return os.fspath(path).startswith(SCHEME)


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and of those in it, by name."""
    if not in_bucket(folder):
        return sorted(path for path in folder.rglob("*") if path.is_file())
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        found += files_below(path) if path.is_dir() else [path]
    return found


def size_of(path: Path) -> int:
    """A file's bytes."""
    found: Any = path.stat()
    return found.length if in_bucket(path) else found.st_size


def append(path: Path, content: bytes) -> None:
    """Adds to an object, which is written anew: it cannot grow."""
    path.write_bytes((path.read_bytes() if path.exists() else b"") + content)


def remove_folder(folder: Path, *, first: str) -> None:
    """Removes all objects below a folder.

    Args:
      folder: the folder; it need not be there.
      first: the one without which the others count for nothing.
    """
    if not folder.is_dir():
        return
    for path in sorted(files_below(folder), key=lambda path: path.name != first):
        path.unlink(missing_ok=True)
