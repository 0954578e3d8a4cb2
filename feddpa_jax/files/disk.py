"""Durable writing: files and folders appear whole, and stay after a power cut.

Everything is written aside under a name that `is_leftover` knows, flushed, renamed, and the folder
flushed. What a kill leaves has such a name: it blocks nothing, and the next command removes it.

In a bucket (`files/bucket.py`) a file is an object, which is written whole and stays by itself.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from feddpa_jax.files import bucket
from feddpa_jax.files.bucket import in_bucket
from feddpa_jax.types import UserError

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
_ASIDE, _FOLDER_ASIDE, _LOCK = ".writing", ".writing-", ".feddpa.lock"


def aside_of(path: Path) -> Path:
    """Where a file or folder is written before it gets its name."""
    return path.with_name(f".{path.name}{_ASIDE}")


def lock_of(path: Path) -> Path:
    """The lock file of a file or folder, beside it."""
    return path.with_name(f".{path.name}{_LOCK}")


def is_leftover(path: Path) -> bool:
    """Whether a name is one that a command uses while it works, and a kill leaves.

    >>> names = (".a.yaml.writing", ".writing-3", ".run.feddpa.lock", "a", ".writing")
    >>> [is_leftover(Path(name)) for name in names]
    [True, True, True, False, False]
    """
    name = path.name
    return name.startswith(_FOLDER_ASIDE) or (
        name.startswith(".") and name.endswith((_ASIDE, _LOCK)) and name.count(".") > 1
    )


def clear_leftovers(folder: Path, *, locks: bool = False) -> None:
    """Removes what killed commands left in a folder.

    Args:
      folder: the folder; nothing is done where it is none.
      locks: lock files too, which does no harm only where nobody works.
    """
    if in_bucket(folder) or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not is_leftover(path) or (path.name.endswith(_LOCK) and not locks):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Removes a folder, if it is there, so that half of it never has its name.

    In a bucket its manifest goes first, without which the rest counts for nothing.
    """
    if in_bucket(folder):
        bucket.remove_folder(folder, first="manifest.json")
        return
    aside = folder.with_name(f"{_FOLDER_ASIDE}old-{folder.name}")
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


class writing:  # noqa: N801 - reads as a phrase: `with writing(path):`
    """Context in which a failure to write a path becomes a message for the user."""

    def __init__(self, path: Path):
        """Args: what is written."""
        self.path = path

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Turns an OSError into a UserError."""
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            if error.errno == errno.EISDIR:
                place = error.filename2 or error.filename or self.path
                raise UserError(
                    f"{place}: is a folder where a file is to be written; remove or rename it, "
                    "then start the same command again"
                ) from None
            raise UserError(
                f"{self.path}: cannot be written ({reason}); make room or choose another folder, "
                "then start the same command again"
            ) from None


def write_whole(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Writes a file so that it is there whole or as it was, and stays after a power cut.

    Args:
      path: the file; its folder is there.
      content: text is written as UTF-8.
      mode: its permissions; the usual ones if None.

    Raises:
      OSError: it cannot be written; no part of it stays.
    """
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        path.write_bytes(data)
        return
    write_through(path, lambda aside: write_new(aside, data, mode=mode))


def write_new(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Writes a file without flushing it: one of a folder that is written aside as a whole.

    Raises:
      OSError: it cannot be written.
    """
    if in_bucket(path):
        path.write_bytes(content)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    descriptor = os.open(path, flags, 0o666 if mode is None else mode)
    try:
        if mode is not None:  # A leftover keeps the permissions that it had.
            with contextlib.suppress(OSError):  # Not every file system has permissions.
                os.fchmod(descriptor, mode)
        _write_all(descriptor, content)
    finally:
        os.close(descriptor)


def write_through(path: Path, write: Callable[[Path], None]) -> None:
    """Lets a function write a file aside, then puts it in its place as `write_whole` does.

    Raises:
      OSError: it cannot be written; no part of it stays.
    """
    if in_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder, path.name))
            path.write_bytes(Path(folder, path.name).read_bytes())
        return
    aside = aside_of(path)
    try:
        write(aside)
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    except Exception:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file, which a kill may cut short.

    Raises:
      OSError: it cannot be written.
    """
    if in_bucket(path):
        bucket.append(path, f"{line}\n".encode())
        return
    new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        _write_all(descriptor, f"{line}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        sync(path.parent)


def make_folder(path: Path, *, mode: int = 0o777) -> None:
    """Makes a folder and those above it; they stay after a power cut.

    Args:
      path: the folder; it may be there.
      mode: permissions of the last one, where it is made.

    Raises:
      OSError: it cannot be made.
    """
    if in_bucket(path) or path.is_dir():
        return
    make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    sync(path.parent)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def check_room(folder: Path, size: int) -> None:
    """Fails early if the disk is full, before anything is written half."""
    if in_bucket(folder):
        return
    path = aside_of(folder / "room")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    finally:
        os.close(descriptor)
    path.unlink()


def sha256(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(content: Mapping[str, Any]) -> str:
    """JSON in lines."""
    return json.dumps(content, indent=1) + "\n"


def sync(path: Path) -> None:
    """Sees a file or folder onto the disk."""
    if in_bucket(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Sees a folder and everything in it onto the disk."""
    if in_bucket(folder):
        return
    for path in [folder, *folder.rglob("*")]:
        sync(path)
