"""What is written last into a folder, and says that its other files are whole."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from feddpa_jax.files.disk import to_json, write_new
from feddpa_jax.files.problems import reason
from feddpa_jax.files.strict_json import read_object
from feddpa_jax.types import UserError


class UnsealedError(Exception):
    """A folder without a seal, or with a file that is missing or of another size."""


def seal(file: Path, version: int, names: Iterable[str], about: Mapping[str, Any]) -> None:
    """Writes a seal beside some files.

    Args:
      file: the seal.
      version: of what is in them.
      names: the files' names.
      about: what else it says.

    Raises:
      OSError: it cannot be written.
    """
    sizes = {name: (file.parent / name).stat().st_size for name in names}
    write_new(file, to_json({"version": version, **about, "files": sizes}).encode())


def unseal(file: Path, version: int) -> dict[str, Any]:
    """What a seal says, once the files beside it are there with their sizes.

    Raises:
      UnsealedError: says what is wrong.
    """
    try:
        found = read_object(file)
        if found["version"] != version:
            raise UnsealedError(f"{file.name} is of version {found['version']}, not {version}")
        names = tuple(found["files"])
    except (UserError, KeyError, TypeError) as error:
        if not file.exists():
            raise UnsealedError(f"{file.name} is missing") from None
        raise UnsealedError(f"{file.name} cannot be read ({reason(error)})") from None
    sizes = {name: _size(file.parent / name) for name in names}
    for name, size in sizes.items():
        if size != found["files"][name]:
            raise UnsealedError(f"{name} has {size} bytes, not {found['files'][name]}")
    return found


def _size(file: Path) -> int:
    """A file's size.

    Raises:
      UnsealedError: it has none.
    """
    try:
        return file.stat().st_size
    except OSError as error:
        raise UnsealedError(what_is_wrong(file, error)) from None


def what_is_wrong(file: Path, error: OSError) -> str:
    """What to say of a file that cannot be opened, in words.

    >>> what_is_wrong(Path("people/rows.npy"), FileNotFoundError(2, "No such file or directory"))
    'rows.npy is missing'
    """
    if isinstance(error, FileNotFoundError):
        return f"{file.name} is missing"
    return f"{file.name} cannot be read ({error.strerror or reason(error)})"
