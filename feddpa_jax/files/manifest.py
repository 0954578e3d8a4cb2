"""Checksums of the files that later commands read: a `manifest.json` in their folder.

Results (`eval/`, `weigh/`) are a set: the manifest is written last, so an incomplete set does not
match it. The files of the run itself change one by one: before one is
replaced its entry names both states, so that a kill at any moment leaves a folder that matches.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from feddpa_jax.files.disk import to_json, write_through, write_whole, writing
from feddpa_jax.types import UserError

NAME = "manifest.json"
_FORMAT = "feddpa 1"

# Size and sha256 of a file; None: the file is not there.
State = tuple[int, str] | None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder's files are.

    Attributes:
      files: the states that a file may be in, by name.
      rounds: the sha256 of each line of metrics.jsonl, for a run's own folder.
    """

    files: Mapping[str, tuple[State, ...]] = dataclasses.field(default_factory=dict)
    rounds: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Writes it into a folder."""
        content = {"format": _FORMAT, "files": self.files, "rounds": self.rounds}
        write_whole(folder / NAME, to_json({**content, "sha256": _own_digest(content)}))


def digest_of(content: bytes) -> str:
    """The sha256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def _own_digest(content: Mapping[str, Any]) -> str:
    """The manifest's digest of itself, which shows whether it is complete."""
    return digest_of(json.dumps(content).encode())


def _state(content: bytes | None) -> State:
    return None if content is None else (len(content), digest_of(content))


def read_bytes(file: Path, remedy: str) -> bytes | None:
    """A file's content; None if there is none.

    Args:
      file: the file.
      remedy: what to do if something else than a file has its name, once that is removed.

    Raises:
      UserError: it cannot be read, or is a folder or the like.
    """
    try:
        if file.exists() and not file.is_file():  # Reading a pipe would wait for ever.
            raise UserError(f"{file}: is not a file; remove it; {remedy}")
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); make it readable") from None


def read_manifest(folder: Path, remedy: str) -> Manifest | None:
    """A folder's manifest; None if it has none, as older versions wrote none.

    Args:
      folder: the folder.
      remedy: what to do if it is damaged.

    Raises:
      UserError: it is damaged.
    """
    content = read_bytes(folder / NAME, remedy)
    if content is None:
        return None
    try:
        found: dict[str, Any] = json.loads(content)
        own = found.pop("sha256")
        if found["format"] != _FORMAT or own != _own_digest(found):
            raise ValueError
        return Manifest(
            {
                str(name): tuple(s if s is None else (int(s[0]), str(s[1])) for s in states)
                for name, states in found["files"].items()
            },
            tuple(map(str, found["rounds"])),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise UserError(f"{folder / NAME}: is damaged; {remedy}") from None


def is_ours(folder: Path) -> bool:
    """Whether a folder has a manifest of ours, undamaged."""
    try:
        return read_manifest(folder, "") is not None
    except UserError:
        return False


class Checked:
    """The files of a folder, which are read as they were written or refused.

    Attributes:
      folder: the folder.
      remedy: what to do about a damaged file.
      manifest: None in a folder of an older version, whose damage cannot be seen.
    """

    def __init__(self, folder: Path, remedy: str):
        """Args: the folder, and what to do about a damaged file.

        Raises:
          UserError: the manifest is damaged.
        """
        self.folder = folder
        self.remedy = remedy
        self.manifest = read_manifest(folder, remedy)

    def say_if_unchecked(self, say: Callable[[str], None], more: str = "") -> None:
        """Warns if there are no checksums, and says what may go unnoticed without them."""
        if self.manifest is None:
            say(
                f"{self.folder}: has no checksums ({NAME}), as of an older version; damage to its "
                f"files{more} may go unseen"
            )

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is none, and need not be.

        Raises:
          UserError: it is not as it was written, or is missing.
        """
        content = read_bytes(self.folder / name, self.remedy)
        states = None if self.manifest is None else self.manifest.files.get(name)
        if states is None or _state(content) in states:
            return content
        if content is None:
            raise UserError(f"{self.folder / name}: is missing; {self.remedy}")
        sizes = sorted({state[0] for state in states if state is not None})
        what = "has changed since it was written"
        if len(content) not in sizes:
            what = f"has {len(content)} bytes, not {' or '.join(map(str, sizes))}"
        raise UserError(f"{self.folder / name}: {what}; {self.remedy}")


def write_set(folder: Path, files: Mapping[str, str | bytes | Iterable[str]]) -> None:
    """Writes files that belong together, and the manifest that they must agree with.

    Args:
      folder: where they go; it is there.
      files: their content, by name, as a whole or part by part; a name may have folders, which
        are there.

    Raises:
      OSError: one cannot be written.
    """
    states: dict[str, tuple[State, ...]] = {}
    for name, content in files.items():
        parts = [content] if isinstance(content, str | bytes) else content
        states[name] = (_write_parts(folder / name, parts),)
    Manifest(states).write(folder)


def _write_parts(path: Path, parts: Iterable[str | bytes]) -> State:
    """Writes a file of some parts, of which memory need not hold all at once."""
    size, digest = 0, hashlib.sha256()

    def write(aside: Path) -> None:
        nonlocal size
        with aside.open("wb") as file:
            for part in parts:
                data = part.encode() if isinstance(part, str) else part
                digest.update(data)
                size += file.write(data)

    write_through(path, write)
    return size, digest.hexdigest()


def write_one(folder: Path, name: str, content: str | bytes, remedy: str) -> None:
    """Replaces one file of a folder so that the manifest agrees with it at every moment.

    Args:
      folder: the folder; it is there.
      name: the file's name.
      content: what it holds from now on.
      remedy: what to do if the manifest is damaged.

    Raises:
      UserError: the manifest is damaged, or something cannot be written.
    """
    manifest = read_manifest(folder, remedy) or Manifest()
    data = content.encode() if isinstance(content, str) else content
    old = read_bytes(folder / name, "start the same command again")
    if old == data and manifest.files.get(name) == (_state(data),):
        return
    with writing(folder / name):
        both = tuple(dict.fromkeys([_state(old), _state(data)]))
        dataclasses.replace(manifest, files={**manifest.files, name: both}).write(folder)
        write_whole(folder / name, data)
        files = {**manifest.files, name: (_state(data),)}
        dataclasses.replace(manifest, files=files).write(folder)
