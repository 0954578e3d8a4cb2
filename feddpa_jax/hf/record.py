"""The record of an export and of each adapter: a `feddpa.json` with the digests of its files."""

from pathlib import Path
from typing import Any

from feddpa_jax.files.disk import sha256
from feddpa_jax.types import UserError

RECORD = "feddpa.json"
# In the record: the digests of a folder's files; and a file that everybody may edit.
FILES, CARD = "files", "README.md"


def list_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file of an export but its cards, which may be edited, and its record."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop(RECORD, None)
    return {name: sha256(p) for name, p in files.items() if p.name != CARD}


def check_files(folder: Path, listed: Any) -> None:
    """Compares an export's files with what its record lists: those too that hold no tensors.

    Args:
      folder: the export.
      listed: by file, its sha256, as the record has it.

    Raises:
      UserError: a file is missing or has changed, or the list is damaged.
    """
    if not isinstance(listed, dict):
        raise UserError(f"{folder / RECORD}: its {FILES} are damaged; export again")
    for name, digest in listed.items():
        file = folder / name
        try:
            found = sha256(file) if file.is_file() else None
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read ({error}); export again") from None
        if found != digest:
            what = "is missing" if found is None else "has changed since it was written"
            raise UserError(
                f"{file}: {what}; export again, or delete {folder / RECORD} if that was meant"
            )
