"""Every client's own adapter: on disk, with the last used ones in memory.

What a client has is a file for each round after which it changed, and is never overwritten in
place: a checkpoint names the files that belong to it, and goes on to be whole while later rounds
write theirs. Clients that never trained have no file; their fresh adapter follows from the seed.
"""

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError

from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.devices.processes import from_first
from feddpa_jax.files.bucket import in_bucket
from feddpa_jax.files.disk import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    clear_leftovers,
    make_folder,
    write_whole,
)
from feddpa_jax.types import UserError

# {target: {"a": ..., "b": ...}} on the host.
HostAdapter = dict[str, dict[str, np.ndarray]]


class Saved(NamedTuple):
    """A client's file: the round that wrote it, its bytes, and their sha256."""

    round_number: int
    size: int
    digest: str


class ClientFiles:
    """Adapter files below a folder, and a bounded number of adapters in memory."""

    def __init__(self, folder: Path, cached: int):
        """Args: the folder, made if need be; and how many adapters stay in memory."""
        self.folder = folder
        self.cached = cached
        self._recent: collections.OrderedDict[tuple[str, int], HostAdapter] = (
            collections.OrderedDict()
        )

    def path(self, name: str, round_number: int) -> Path:
        """The file of a client as a round left it."""
        return self.folder / name / f"{round_number:05d}.safetensors"

    def write(self, name: str, round_number: int, adapter: HostAdapter) -> Saved:
        """Writes a client's adapter; the file is there whole or not at all.

        Raises:
          UserError: it cannot be written.
        """
        from safetensors.numpy import save

        final = self.path(name, round_number)
        content = save(
            {
                f"{t}.{part}": np.ascontiguousarray(x)
                for t, pair in adapter.items()
                for part, x in pair.items()
            }
        )
        try:
            make_folder(self.folder, mode=PRIVATE_FOLDER)
            make_folder(final.parent, mode=PRIVATE_FOLDER)
            write_whole(final, content, mode=PRIVATE_FILE)
        except OSError as error:
            raise UserError(
                f"{final}: cannot be written ({error.strerror or error}); make room and start the "
                "same command again"
            ) from None
        self._remember((name, round_number), adapter)
        return Saved(round_number, len(content), hashlib.sha256(content).hexdigest())

    def tidy(self, used: Container[tuple[str, int]], *, up_to: int | None = None) -> None:
        """Removes files that no checkpoint is whole with, and what a killed run left.

        Those that stay become private, which older versions did not see to.

        Args:
          used: name and round of the files that stay.
          up_to: what later rounds than this have written or are writing stays as well; None: there
            are none.

        Raises:
          OSError: something cannot be removed.
        """
        if not self.folder.is_dir():
            return
        _make_private(self.folder, PRIVATE_FOLDER)
        for folder in sorted(p for p in self.folder.iterdir() if p.is_dir()):
            if up_to is None:
                clear_leftovers(folder)
            _make_private(folder, PRIVATE_FOLDER)
            for path in folder.glob("*.safetensors"):
                number = int(path.stem) if path.stem.isdecimal() else None
                if up_to is not None and number is not None and number > up_to:
                    continue
                if number is not None and (folder.name, number) not in used:
                    path.unlink()
                else:
                    _make_private(path, PRIVATE_FILE)

    def read(self, name: str, saved: Saved) -> HostAdapter:
        """A client's adapter.

        Raises:
          UserError: its file is missing or damaged.
        """
        from safetensors.numpy import load

        key = (name, saved.round_number)
        if key not in self._recent:
            path = self.path(name, saved.round_number)
            try:
                flat = load(path.read_bytes())
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path}: missing or damaged ({error})") from None
            adapter: HostAdapter = {}
            for dotted, array in flat.items():
                target, _, part = dotted.partition(".")
                adapter.setdefault(target, {})[part] = array
            self._remember(key, adapter)
        self._recent.move_to_end(key)
        return self._recent[key]

    def _remember(self, key: tuple[str, int], adapter: HostAdapter) -> None:
        self._recent[key] = adapter
        while len(self._recent) > max(1, self.cached):
            self._recent.popitem(last=False)


def _make_private(path: Path, mode: int) -> None:
    """Takes permissions away; not every file system has them, and not every file is the user's."""
    if in_bucket(path):
        return
    with contextlib.suppress(OSError):
        if path.stat().st_mode & 0o777 & ~mode:
            path.chmod(mode)


@dataclasses.dataclass(frozen=True)
class LocalAdapters:
    """All clients' local adapters as a value: `put` returns another and leaves this one as it is.

    Attributes:
      names: the clients' names.
      files: where they lie.
      fresh: the adapters of clients (by index) that have not trained yet, [c, ...]; None if every
        client has trained.
      saved: the file of each client that has.
    """

    names: tuple[str, ...]
    files: ClientFiles
    fresh: Callable[[Sequence[int]], Adapter] | None
    saved: Mapping[str, Saved] = dataclasses.field(default_factory=dict)

    def take(self, members: Sequence[int] | np.ndarray) -> Adapter:
        """The adapters of some clients as a bank of host arrays, [c, ...]."""
        new = [int(c) for c in members if self.names[c] not in self.saved]
        made: dict[int, HostAdapter] = {}
        if new:
            assert self.fresh is not None
            bank = jax.device_get(self.fresh(new))
            made = {c: jax.tree.map(lambda leaf, at=i: leaf[at], bank) for i, c in enumerate(new)}
        old = [self.names[c] for c in members if self.names[c] in self.saved]
        read = dict(zip(old, self._read(old), strict=True))
        own = [made[int(c)] if int(c) in made else read[self.names[c]] for c in members]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *own)

    def _read(self, names: Sequence[str]) -> list[HostAdapter]:
        """Adapters from their files, which the first process reads for all."""
        if not names:
            return []
        return from_first(lambda: [self.files.read(name, self.saved[name]) for name in names])

    def put(
        self, members: Sequence[int] | np.ndarray, adapters_C: Adapter, round_number: int
    ) -> "LocalAdapters":
        """With the adapters of some clients replaced, as a round left them."""
        names = [self.names[c] for c in members]

        def write() -> list[Saved]:
            return [
                self.files.write(
                    name,
                    round_number,
                    jax.tree.map(lambda leaf, at=place: np.asarray(leaf[at]), adapters_C),
                )
                for place, name in enumerate(names)
            ]

        written = {
            name: Saved(*saved) for name, saved in zip(names, from_first(write), strict=True)
        }
        return dataclasses.replace(self, saved={**self.saved, **written})

    def all(self) -> Adapter:
        """Every client's adapter, [C, ...]."""
        return self.take(range(len(self.names)))
