"""Errors of the operating system in one line, unless a caller has a better message."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feddpa_jax.types import UserError

# Fields of the configuration that name a file or folder; others name what a registry knows.
_FIELDS = ("data.path", "data.test_path", "model.path", "init.global_adapter", "init.local_adapter")
_SPACE = "make room, then start the same command again"
_ALLOW = "allow it, or name another path"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "its links lead back to itself; name another path",
    errno.ENOTDIR: "a part of the path is a file; name another path",
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
    errno.EROFS: "name another path",
}


def in_one_line(error: BaseException) -> str | None:
    """What to say of an error that the user can fix; None for a fault of the program.

    >>> in_one_line(PermissionError(errno.EACCES, "Permission denied", "/runs/a"))
    '/runs/a: Permission denied; allow it, or name another path'
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory{f': {error}' if str(error) else ''}; use less, or a larger machine"
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        remedy = _REMEDIES.get(error.errno or 0)
        return f"{name}{error.strerror}{f'; {remedy}' if remedy else ''}"
    if isinstance(error, UnicodeEncodeError):
        near = error.object[max(0, error.start - 40) : error.end + 40]
        return f"{near!r} is not UTF-8; give the file or folder another name"
    if "embedded null" in str(error):
        return f"{error}: a name or path has a zero byte; name another"
    return None


def reason(error: BaseException) -> str:
    r"""What a library says, in one line: it may repeat names that a damaged file has.

    >>> reason(ValueError("no tensor 'a\nb' ")), reason(ValueError())
    ("no tensor 'a b'", 'ValueError')
    """
    return " ".join(str(error).split())[:300] or type(error).__name__


def with_home(path: str) -> Path:
    """A path with `~` resolved; as it is if there is no such home folder.

    >>> with_home("~nobody_at_all/a").as_posix()
    '~nobody_at_all/a'
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def check_path(name: str, path: Path) -> None:
    """Refuses a path that can be neither read nor made.

    Args:
      name: what names it, an option or a field.
      path: that may not exist yet.

    Raises:
      UserError: the name, the path and what is wrong with it.
    """
    start = f"{name}: " if name else ""
    try:
        path.expanduser().stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{start}{in_one_line(error)}") from None
    except (RuntimeError, ValueError) as error:  # No such user, or a zero byte.
        raise UserError(f"{start}{str(path)!r}: {error}; name another path") from None


def check_fields(values: Mapping[str, Any]) -> None:
    """The same for the paths of a configuration, given as {field: value}."""
    for field in _FIELDS:
        if isinstance(values[field], str):
            check_path(field, Path(values[field]))
