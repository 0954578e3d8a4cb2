"""What the program prints to: in any encoding, closed, full or without a reader.

- A character that the stream cannot encode is written as an escape (backslash, u, 2026).
- A stream that was closed before the program started is like /dev/null.
- If standard output fails, a command that only prints ends (OutputLostError); one that writes
  files goes on without it. Standard error is never a reason to stop.
"""

import errno
import io
import os
import sys
from typing import Any, TextIO


class OutputLostError(Exception):
    """Standard output cannot be written; no OSError, which libraries would take for another file's.

    Attributes:
      reason: why, in the system's words.
      reader_gone: whether it was a pipe that nobody reads any more.
    """

    def __init__(self, error: OSError):
        """Args: what the system said."""
        self.reason = error.strerror or str(error)
        self.reader_gone = error.errno == errno.EPIPE
        super().__init__(self.reason)


class Descriptor(io.FileIO):
    """A file descriptor that, once it has failed, takes everything and writes nothing."""

    def __init__(self, descriptor: int, *, needed: bool):
        """Args: the descriptor, left open at the end; whether a failure is raised."""
        super().__init__(descriptor, "w", closefd=False)
        self.needed = needed
        self.lost: OutputLostError | None = None

    def write(self, data: Any, /) -> int | None:
        """Writes bytes.

        Raises:
          OutputLostError: it failed, and is needed.
        """
        size = memoryview(data).nbytes
        if self.lost is not None:
            return size
        try:
            return super().write(data)
        except OSError as error:
            self.lost = OutputLostError(error)
            if self.needed:
                raise self.lost from None
            return size


def prepare() -> None:
    """Makes the process's streams safe; once."""
    fill()
    if _descriptor(sys.stdout) is None:
        sys.stdout = wrap(1, sys.stdout, needed=True)
        sys.stderr = wrap(2, sys.stderr, needed=False)


def fill() -> None:
    """Opens /dev/null for streams that are closed; else the program's next files would be those."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It gets the lowest free number.


def wrap(descriptor: int, old: TextIO | None, *, needed: bool) -> io.TextIOWrapper:
    """A text stream on a file descriptor, with the encoding and buffering of another one."""
    return io.TextIOWrapper(
        io.BufferedWriter(Descriptor(descriptor, needed=needed)),
        encoding=getattr(old, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=getattr(old, "line_buffering", True),
        write_through=getattr(old, "write_through", False),
    )


def go_on_without() -> None:
    """From here on standard output may fail: the command has more to do than to print."""
    descriptor = _descriptor(sys.stdout)
    if descriptor is not None:
        descriptor.needed = False


def lost() -> OutputLostError | None:
    """What became of standard output, if it failed."""
    descriptor = _descriptor(sys.stdout)
    return None if descriptor is None else descriptor.lost


def apart() -> None:
    """Makes file descriptor 1, where libraries in C++ chatter, standard error too."""
    if _descriptor(sys.stdout) is not None:
        sys.stdout.flush()
        own = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = wrap(own, sys.stdout, needed=False)


def _descriptor(stream: Any) -> Descriptor | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Descriptor) else None
