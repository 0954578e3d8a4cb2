"""What a disk does to a careful writer: room, sums, flushing, and the reasons when it refuses."""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def check_room(folder: Path, size: int) -> None:
    """Fails once and early if the disk is full: Orbax would fail in several threads at a time."""
    path = folder / "room"
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    path.unlink()


def sha256(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON in lines."""
    path.write_text(json.dumps(content, indent=1) + "\n")


def sync(path: Path) -> None:
    """Sees a file or folder onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Sees a folder and everything in it onto the disk."""
    for path in [folder, *folder.rglob("*")]:
        sync(path)


def disk_reason(error: BaseException) -> str:
    """What the disk refused, if that is what an error comes from; else empty."""
    if isinstance(error, OSError):
        return error.strerror or " ".join(str(error).split())
    for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES):
        if os.strerror(number).lower() in str(error).lower():
            return os.strerror(number)
    cause = error.__cause__ or error.__context__
    return disk_reason(cause) if cause else ""
