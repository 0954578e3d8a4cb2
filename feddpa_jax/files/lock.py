"""One process at a time: advisory locks that end with the process, and say who holds them."""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from feddpa_jax.files.bucket import in_bucket
from feddpa_jax.files.disk import lock_of, make_folder, writing
from feddpa_jax.files.strict_json import parse_json
from feddpa_jax.types import UserError

_HELD = (errno.EAGAIN, errno.EACCES)
_MOMENT = 0.1  # Seconds.


@contextlib.contextmanager
def hold(
    path: Path, remedy: str, warn: Callable[[str], None], *, shown: Path | None = None
) -> Iterator[None]:
    """Holds a path, which need not exist, while the context lasts.

    The lock is a file beside the path (`disk.lock_of`). It ends with this process, however that
    ends: a lock file that a killed process left is no obstacle.

    Args:
      path: what is worked on; the folder that it is in is made if need be.
      remedy: what to do if another process holds it.
      warn: called with a message if the file system has no locks; work continues without one.
      shown: what messages name instead of the path.

    Raises:
      UserError: another process holds it, which is named; or the lock file cannot be written.
    """
    if in_bucket(path):
        warn(f"{shown or path}: a bucket has no locks; make sure that no other process works there")
        yield
        return
    file = lock_of(path)
    with writing(path):
        made = not file.parent.exists()
        make_folder(file.parent)
        descriptor = _take(file, shown or path, remedy, warn)
    try:
        yield
    finally:
        try:
            if descriptor is not None:
                with contextlib.suppress(OSError):  # It may be another user's, left by a kill.
                    file.unlink()
                if made:
                    with contextlib.suppress(OSError):  # It holds something by now.
                        file.parent.rmdir()
        finally:
            if descriptor is not None:
                os.close(descriptor)


def refuse_if_held(path: Path, remedy: str, *, shown: Path | None = None) -> None:
    """Refuses early what `hold` would refuse.

    Raises:
      UserError: another process holds the path.
    """
    holder = holder_of(path)
    if holder:
        raise UserError(f"{shown or path}: {holder}; {remedy}")


def holder_of(path: Path) -> str:
    """Who holds a path, as a clause; empty if nobody does."""
    try:
        descriptor = os.open(lock_of(path), os.O_RDONLY)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _holder(descriptor) if error.errno in _HELD else ""
    finally:
        os.close(descriptor)
    return ""


def _take(file: Path, shown: Path, remedy: str, warn: Callable[[str], None]) -> int | None:
    """The locked file's descriptor; None where there are no locks."""
    for again in itertools.count():
        descriptor, writable = _open(file)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            held = error.errno in _HELD
            if held and not again:  # Perhaps `holder_of` is just trying it.
                os.close(descriptor)
                time.sleep(_MOMENT)
                continue
            holder = _holder(descriptor) if held else ""
            os.close(descriptor)
            if held:
                raise UserError(f"{shown}: {holder}; {remedy}") from None
            warn(
                f"{shown}: this file system has no locks ({error.strerror}); make sure that no "
                "other process works there"
            )
            return None
        if _is_at(descriptor, file):
            break
        os.close(descriptor)  # Its last holder has just removed it.
    if not writable:
        return descriptor
    about = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": _command(),
    }
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, (json.dumps(about) + "\n").encode())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open(file: Path) -> tuple[int, bool]:
    """A lock file's descriptor, and whether it can be written."""
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o644), True
    except PermissionError as error:
        try:  # One that another user's process left, which can be locked all the same.
            return os.open(file, os.O_RDONLY), False
        except OSError:
            raise error from None


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _command() -> str:
    words = [word for word in sys.argv[1:2] if not word.startswith("-")]
    return " ".join(["feddpa", *words])


def _holder(descriptor: int) -> str:
    try:
        about = parse_json(os.pread(descriptor, 4096, 0).decode(), "a lock")
        return (
            f"process {about['pid']} on {about['host']} has been at work there since "
            f"{about['since']} ({about['command']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process is at work there"
