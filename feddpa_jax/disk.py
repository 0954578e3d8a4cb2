"""What a disk does to a careful writer: room, sums, flushing."""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def check_room(folder: Path, size: int) -> None:
    """Fails early if the disk is full, before anything is written half."""
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
