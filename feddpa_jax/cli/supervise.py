"""One of several processes runs as a child of a small parent that can always say how it ended.

JAX's coordination service ends a process from C++ (`LOG(FATAL)`, SIGABRT) when another one is gone,
often before Python hears of it, and no setting of JAX prevents that. The parent holds nothing but
the child's standard error: it passes it on, keeps back what C++ logs about the loss, and turns the
abort into one line and exit code 2. Signals go on to the child; it dies with its parent.
"""

import ctypes
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from feddpa_jax.cli import interrupt

LOST = "another process of the run is gone; start all of them again with the same command to resume"
UNMET = "not all processes came; start all of them, or give them more time with --wait"
KILLED = "killed, most likely because the machine ran out of memory; start it again to resume"

# Lines of C++ logs, and what follows a fatal one.
_NOISE = re.compile(
    rb"[EF]\d{4} [\d:.]+ +\d+ \S*(coordination|distributed|client\.)|"
    rb"\*\*\* Check failure|terminate called after"
)
_FATAL = (b"JAX distributed service", b"coordination service", b"CoordinationService")
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PR_SET_PDEATHSIG = 1
_POLL = 0.1


def split() -> int | None:
    """Forks before JAX is imported: None in the child, and in the parent the child's exit code."""
    parent = os.getpid()
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(write, 2)
        os.close(write)
        _die_with(parent)
        return None
    os.close(write)
    _pass_signals_on(child)
    filtered = Filter(lambda text: _write(2, text))
    return _end(_follow(child, read, filtered), filtered)


class Filter:
    """Passes lines on, until C++ begins to log about the coordination of processes."""

    def __init__(self, write: Callable[[bytes], None]):
        """Args: where lines go."""
        self.write = write
        self.told = False
        self.stopped = False
        self.held = b""
        self._rest = b""

    def add(self, content: bytes) -> None:
        """Takes what came; passes whole lines on."""
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            self._line(line + b"\n")

    def close(self) -> None:
        """Takes the last line, which may not be whole."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""

    def speaks_of_coordination(self) -> bool:
        """Whether what is held back is about other processes."""
        return any(word in self.held for word in _FATAL)

    def _line(self, line: bytes) -> None:
        if line.startswith(b"feddpa: "):
            self.told = True
            self.stopped = self.stopped or line.decode(errors="replace").rstrip() == interrupt.LINE
            self.write(line)
        elif self.held or _NOISE.match(line):
            self.held += line
        else:
            self.write(line)


def _die_with(parent: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(2)


def _pass_signals_on(child: int) -> None:
    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    signal.set_wakeup_fd(-1)
    for number in _PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)


def _follow(child: int, read: int, filtered: Filter) -> int:
    """The child's wait status, once it has ended."""
    status = None
    while True:
        # Programs that the child has started may hold the pipe open after its end.
        ready, _, _ = select.select([read], [], [], _POLL if status is None else 0)
        content = os.read(read, 2**16) if ready else b""
        filtered.add(content)
        if status is not None and not content:
            return status
        if status is None and not content:
            done, found = os.waitpid(child, 0 if ready else os.WNOHANG)
            status = found if done else None


def _end(status: int, filtered: Filter) -> int:
    """The exit code for how the child ended, with what has to be said of it."""
    filtered.close()
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGABRT and filtered.speaks_of_coordination():
        if filtered.stopped:  # The others were stopped too, and one was faster.
            return interrupt.CODE
        if not filtered.told:
            _tell(UNMET if b"RegisterTask" in filtered.held else LOST)
        return 2
    if code not in (0, 2, 130):
        filtered.write(filtered.held)
    if code >= 0:
        return code
    if code == -signal.SIGKILL:
        _tell(KILLED)
        return 128 + signal.SIGKILL
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    return 128 - code


def _tell(text: str) -> None:
    _write(2, f"feddpa: error: {text}\n".encode())


def _write(descriptor: int, text: bytes) -> None:
    with suppress(OSError):
        while text:
            text = text[os.write(descriptor, text) :]
