"""Clients' own parts on disk, with the last used ones in memory.

What a client has is a file for each round after which it changed, and is never overwritten in
place: a checkpoint names the files that belong to it, and goes on to be whole while later rounds
write theirs. Clients that never trained have no file; their fresh parts follow from the seed.
"""

import collections
import contextlib
import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from feddpa_jax.devices.processes import from_first
from feddpa_jax.federated.clients import HostParts, Saved
from feddpa_jax.files.bucket import in_bucket
from feddpa_jax.files.disk import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    clear_leftovers,
    make_folder,
    write_whole,
)
from feddpa_jax.types import UserError, client_id

# A disk brings many files to safety at once in little more time than one.
WRITERS = 8
# Of more clients than this no folder holds them all; so many folders do.
MANY, SHARDS = 4096, 4096


class ClientFiles:
    """Clients' files below a folder, and those of a bounded number of clients in memory."""

    def __init__(self, folder: Path, cached: int, *, sharded: bool = False):
        """Makes a store.

        Args:
          folder: made if need be.
          cached: of how many clients the parts stay in memory.
          sharded: clients' folders lie in `SHARDS` folders, none of which gets too many.
        """
        self.folder = folder
        self.cached = cached
        self.sharded = sharded
        self._recent: collections.OrderedDict[tuple[str, int], HostParts] = (
            collections.OrderedDict()
        )

    def path(self, name: str, round_number: int) -> Path:
        """The file of a client as a round left it."""
        shard = f"{client_id(name) % SHARDS:03x}" if self.sharded else ""
        return self.folder / shard / name / f"{round_number:05d}.safetensors"

    def there(self, name: str, round_number: int) -> Path:
        """Where that file is, in a shard or not; its path if it is missing."""
        expected = self.path(name, round_number)
        other = ClientFiles(self.folder, 0, sharded=not self.sharded).path(name, round_number)
        return other if not expected.is_file() and other.is_file() else expected

    def write(self, name: str, round_number: int, parts: HostParts) -> Saved:
        """Writes a client's parts; the file is there whole or not at all.

        Raises:
          UserError: it cannot be written.
        """
        saved = self._write(name, round_number, parts)
        self._remember((name, round_number), parts)
        return saved

    def write_all(self, round_number: int, parts: Mapping[str, HostParts]) -> Mapping[str, Saved]:
        """Writes clients' parts, which the first process does for all, several at a time.

        Raises:
          UserError: one cannot be written.
        """
        found = from_first(lambda: self._write_all(round_number, parts))
        return {name: Saved(*saved) for name, saved in zip(parts, found, strict=True)}

    def _write_all(self, round_number: int, parts: Mapping[str, HostParts]) -> list[Saved]:
        with ThreadPoolExecutor(WRITERS) as pool:
            saved = list(
                pool.map(lambda own: self._write(own[0], round_number, own[1]), parts.items())
            )
        for name, own in parts.items():
            self._remember((name, round_number), own)
        return saved

    def _write(self, name: str, round_number: int, parts: HostParts) -> Saved:
        from safetensors.numpy import save

        final = self.path(name, round_number)
        content = save(
            {
                f"{part}.{target}.{leaf}": np.asarray(x, order="C")
                for part, targets in parts.items()
                for target, leaves in targets.items()
                for leaf, x in leaves.items()
            }
        )
        try:
            make_folder(self.folder, mode=PRIVATE_FOLDER)
            if self.sharded:
                make_folder(final.parents[1], mode=PRIVATE_FOLDER)
            make_folder(final.parent, mode=PRIVATE_FOLDER)
            write_whole(final, content, mode=PRIVATE_FILE)
        except OSError as error:
            raise UserError(
                f"{final}: cannot be written ({error.strerror or error}); make room and start the "
                "same command again"
            ) from None
        return Saved(round_number, len(content), hashlib.sha256(content).hexdigest())

    def read_all(self, saved: Mapping[str, Saved]) -> list[HostParts]:
        """Clients' parts from their files, which the first process reads for all.

        Raises:
          UserError: a file is missing or damaged.
        """
        if not saved:
            return []
        return from_first(lambda: [self.read(name, own) for name, own in saved.items()])

    def tidy(self, used: Container[tuple[str, int]]) -> None:
        """Removes files that no checkpoint is whole with, and what a killed run left.

        Those that stay become private, which older versions did not see to.

        Args:
          used: name and round of the files that stay.

        Raises:
          OSError: something cannot be removed.
        """
        if not self.folder.is_dir():
            return
        _make_private(self.folder, PRIVATE_FOLDER)
        for folder in self._folders():
            clear_leftovers(folder)
            _make_private(folder, PRIVATE_FOLDER)
            for path in folder.glob("*.safetensors"):
                number = int(path.stem) if path.stem.isdecimal() else None
                if number is not None and (folder.name, number) not in used:
                    path.unlink()
                else:
                    _make_private(path, PRIVATE_FILE)

    def remove(self, files: Iterable[tuple[str, int]]) -> None:
        """Removes clients' files, by name and round.

        Raises:
          OSError: one cannot be removed.
        """
        for name, round_number in files:
            self.there(name, round_number).unlink(missing_ok=True)

    def _folders(self) -> Iterator[Path]:
        """The folders of all clients, those in shards too."""
        for folder in sorted(p for p in self.folder.iterdir() if p.is_dir()):
            inner = sorted(p for p in folder.iterdir() if p.is_dir())
            if inner:
                _make_private(folder, PRIVATE_FOLDER)
            yield from inner or [folder]

    def read(self, name: str, saved: Saved) -> HostParts:
        """A client's parts.

        Raises:
          UserError: its file is missing or damaged.
        """
        from safetensors.numpy import load

        key = (name, saved.round_number)
        if key not in self._recent:
            path = self.there(name, saved.round_number)
            try:
                flat = load(path.read_bytes())
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path}: missing or damaged ({error})") from None
            parts: HostParts = {}
            for dotted, array in flat.items():
                # Earlier versions had one part.
                part, target, leaf = ["local", *dotted.split(".")][-3:]
                parts.setdefault(part, {}).setdefault(target, {})[leaf] = array
            self._remember(key, parts)
        self._recent.move_to_end(key)
        return self._recent[key]

    def _remember(self, key: tuple[str, int], parts: HostParts) -> None:
        self._recent[key] = parts
        while len(self._recent) > max(1, self.cached):
            self._recent.popitem(last=False)


def _make_private(path: Path, mode: int) -> None:
    """Takes permissions away; not every file system has them, and not every file is the user's."""
    if in_bucket(path):
        return
    with contextlib.suppress(OSError):
        if path.stat().st_mode & 0o777 & ~mode:
            path.chmod(mode)
