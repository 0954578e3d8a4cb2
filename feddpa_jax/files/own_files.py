"""Things in users' own Python files, named as FILE.py:NAME."""

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from feddpa_jax.files.problems import with_home
from feddpa_jax.types import UserError


def split_name(name: str) -> tuple[Path, str] | None:
    """The file and the name in it that "FILE.py:NAME" stands for; None for any other text.

    >>> split_name("my.py:gate")[1], split_name("cosine")
    ('gate', None)
    """
    file, colon, inner = name.rpartition(":")
    return (with_home(file), inner) if colon and file.endswith(".py") else None


def load_own(name: str, field: str) -> Any:
    """What "FILE.py:NAME" stands for; the file is run once as long as it does not change.

    Args:
      name: with a path from the working directory.
      field: the configuration's field that names it, for messages.

    Raises:
      UserError: there is no such file, it fails, or it has nothing of that name.
    """
    found = split_name(name)
    assert found is not None
    path, inner = found
    if not path.is_file():
        raise UserError(
            f"{field}: {path} does not exist; name a file from here as "
            f"--{field} FILE.py:{inner or 'NAME'}, or choose another name"
        )
    module = _load(path.resolve(), str(path), path.stat().st_mtime_ns, field)
    if not hasattr(module, inner):
        own = [
            known
            for known, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__ and not known.startswith("_")
        ]
        has = ", ".join(own) or "none"
        raise UserError(f"{field}: {path} has no function {inner!r}; it has {has}")
    return getattr(module, inner)


@functools.lru_cache
def _load(path: Path, shown: str, changed: int, field: str) -> ModuleType:
    """A user's file as a module, which is run here."""
    # A module of the same name may be imported already, and pickle and dataclasses look it up.
    spec = importlib.util.spec_from_file_location(f"feddpa_jax_own.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise fails(field, shown, error) from None
    return module


def fails(field: str, name: str, error: BaseException) -> UserError:
    """The message for a user's own code that raises: one line."""
    reason = (str(error).strip() or "no message").splitlines()[0]
    return UserError(f"{field}: {name} fails with {type(error).__name__}: {reason}; fix it")
