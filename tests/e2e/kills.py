"""A process that dies at any of its file operations, in this process: nothing it does later counts.

Every opening for writing, write, rename and removal below a folder is counted. At the chosen one
`Killed` is raised; it is no Exception, and every operation after it raises it again, so that no
cleanup of the program reaches the disk, as none does when a process is killed. A write at which the
process dies leaves half of its bytes.
"""

import builtins
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from feddpa_jax.run import client_files


class Killed(BaseException):
    """The end of the process."""


class Watch:
    """What is done to the files below a folder.

    Attributes:
      root: the folder.
      at: number of the operation, from 0, at which the process dies; None: it lives.
      done: the operations so far, as "name path".
    """

    def __init__(self, root: Path, at: int | None = None):
        """Args: the folder, and when the process dies."""
        self.root = str(root.resolve())
        self.at = at
        self.dead = False
        self.done: list[str] = []
        self.paths: dict[int, str] = {}

    def place(self, path: Any, dir_fd: int | None = None) -> str | None:
        """A path below the root; None for any other."""
        if isinstance(path, int):
            return self.paths.get(path)
        text = os.fspath(path)
        if dir_fd is not None:
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        text = os.path.abspath(text)
        return text if text.startswith(self.root) else None

    def note(self, name: str, place: str | None, before_death: Callable[[], Any] = int) -> None:
        """Counts an operation, and perhaps dies of it."""
        if place is None:
            return
        if self.dead:
            raise Killed
        self.done.append(f"{name} {os.path.relpath(place, self.root)}")
        if self.at == len(self.done) - 1:
            before_death()
            self.dead = True
            raise Killed

    def open(self, path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        """os.open, noted where it is for writing."""
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        place = self.place(path, named.get("dir_fd")) if writes else None
        self.note("open", place)
        descriptor = _OPEN(path, flags, *arguments, **named)
        self.paths.pop(descriptor, None)
        if place is not None:
            self.paths[descriptor] = place
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        """os.write, torn at the end."""
        half = memoryview(data)[: len(data) // 2]
        self.note("write", self.paths.get(descriptor), lambda: _WRITE(descriptor, half))
        return _WRITE(descriptor, data)

    def io_open(self, file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        """io.open, noted where it is for writing."""
        place = self.place(file) if set(mode) & set("wax+") and not isinstance(file, int) else None
        self.note("open", place)
        opened = _IO_OPEN(file, mode, *arguments, **named)
        return opened if place is None else File(opened, place, self)

    def save_file(self, tensors: Any, path: Any, **named: Any) -> None:
        """safetensors' own writing, torn at the end."""

        def tear() -> None:
            _SAVE(tensors, path, **named)
            os.truncate(path, os.path.getsize(path) // 2)

        self.note("save", self.place(path), tear)
        _SAVE(tensors, path, **named)

    def plain(self, name: str, original: Callable) -> Callable:
        """An operation on one path or two, noted."""

        def call(path: Any, *arguments: Any, **named: Any) -> Any:
            at = named.get("dir_fd", named.get("src_dir_fd"))
            self.note(name, self.place(path, at))
            return original(path, *arguments, **named)

        return call


class File:
    """A file that was opened for writing, whose writes are noted and torn."""

    def __init__(self, file: Any, place: str, watch: Watch):
        """Args: the file, where it is, and who watches."""
        self._file, self._place, self._watch = file, place, watch

    def write(self, data: Any) -> int:
        """Writes."""

        def tear() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._watch.note("write", self._place, tear)
        return self._file.write(data)

    def __enter__(self) -> "File":
        """The file itself."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Closes it."""
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        """All else is the file's."""
        return getattr(self._file, name)


_OPEN, _WRITE, _IO_OPEN, _SAVE = os.open, os.write, io.open, safetensors.numpy.save_file
_PLAIN = ("mkdir", "rmdir", "rename", "replace", "unlink", "remove", "chmod", "fchmod", "ftruncate")
_PLAIN += ("posix_fallocate",)


@contextlib.contextmanager
def watched(root: Path, at: int | None = None) -> Iterator[Watch]:
    """Watches a folder, and dies at an operation; `Killed` ends the context and goes no further."""
    watch = Watch(root, at)
    with pytest.MonkeyPatch.context() as patch:
        for name in _PLAIN:
            patch.setattr(os, name, watch.plain(name, getattr(os, name)))
        patch.setattr(os, "open", watch.open)
        patch.setattr(os, "write", watch.write)
        patch.setattr(io, "open", watch.io_open)
        patch.setattr(builtins, "open", watch.io_open)
        patch.setattr(safetensors.numpy, "save_file", watch.save_file)
        # Clients' files one after the other, so that operations have an order.
        patch.setattr(client_files, "WRITERS", 1)
        with contextlib.suppress(Killed):
            yield watch
