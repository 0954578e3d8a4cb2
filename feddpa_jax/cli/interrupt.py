"""Ctrl-C: one line and exit code 130, whatever the program is doing.

Three things keep a plain KeyboardInterrupt from doing this: libraries that swallow it (a callback
of the garbage collector, an import), C++ that does not return to Python for minutes (the compiler,
a wait for another process), and the moments before the first and after the last line of `main`. So
a program that has called `install` ends at once while it only imports; while it works, it gets
PATIENCE seconds to clean up. Every file that the program writes survives a kill, so this one too.

Imports next to nothing: what is imported before `install` cannot be interrupted cleanly.
"""

import _thread
import os
import signal
import sys
import time
from typing import NoReturn

CODE = 130
LINE = "feddpa: stopped; rerun the same command to resume"
# Seconds that work may take to clean up before it is ended hard.
PATIENCE = 3.0
# A launcher and the terminal may both pass on one key press; seconds apart that count as one.
ONE_PRESS = 0.5


class _Interrupt:
    """The program's one state."""

    installed = False
    working = False
    pressed = 0.0
    told = False
    # Held by the thread that ends the process; the main thread may take it twice.
    lock = _thread.RLock()


_now = _Interrupt()


def install() -> None:
    """Takes over SIGINT for the rest of the process; call it from the main thread, before imports.

    A process that was started with SIGINT ignored (in the background of a script) keeps it so.
    """
    _now.installed = True
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    signal.signal(signal.SIGINT, _on_signal)
    from feddpa_jax.cli import streams

    streams.fill()
    ours, signals = os.pipe()
    os.set_blocking(signals, False)
    # Written by the C handler at once, also while the main thread is in C++.
    signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
    _thread.start_new_thread(_watch, (ours,))
    sys.unraisablehook = _unraisable


def installed() -> bool:
    """Whether this process is the program itself, and not code that calls `main`."""
    return _now.installed


class working:  # noqa: N801 - reads as a phrase: `with working():`
    """Context in which Ctrl-C raises KeyboardInterrupt, so that the work can clean up."""

    def __enter__(self) -> None:
        """Begins to raise."""
        _now.working = True

    def __exit__(self, *_: object) -> None:
        """Ends to raise."""
        _now.working = False


def pressed() -> bool:
    """Whether Ctrl-C was pressed: an exception may be what a library made of it."""
    return _now.pressed > 0.0


def tell() -> None:
    """Says that the program stops; once."""
    with _now.lock:
        if not _now.told:
            _write(2, f"{LINE}\n")
            _now.told = True


def end() -> NoReturn:
    """Ends the stopped process: the interpreter's own end would crash beside a compiler at work."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
    _stop()


def ignore() -> None:
    """From here on Ctrl-C does nothing: the work is done, and the interpreter ends."""
    if _now.installed:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _on_signal(number: int, frame: object) -> None:
    now = time.monotonic()
    if now - _now.pressed > ONE_PRESS if _now.pressed else not _now.working:
        _stop()
    if not _now.pressed:
        _now.pressed = now
        raise KeyboardInterrupt


def _watch(signals: int) -> None:
    """Ends the process where the main thread does not get to it."""
    first = 0.0
    while True:
        if signal.SIGINT not in os.read(signals, 64):
            continue
        now = time.monotonic()
        # The main thread may have left its work already, to clean up.
        if now - first > ONE_PRESS if first else not (_now.working or _now.pressed):
            _stop()
        if not first:
            first = now
            _thread.start_new_thread(_stop_after, (PATIENCE,))


def _stop_after(seconds: float) -> None:
    time.sleep(seconds)
    _stop()


def _unraisable(problem: "sys.UnraisableHookArgs") -> None:
    """Python would print what a callback may not raise, and go on."""
    if pressed():
        _stop()
    sys.__unraisablehook__(problem)


def _stop() -> NoReturn:
    _now.lock.acquire()
    if os.isatty(1):
        _write(1, "\x1b[?25h")  # The cursor, which a progress bar hides.
    tell()
    os._exit(CODE)


def _write(descriptor: int, text: str) -> None:
    try:
        os.write(descriptor, text.encode())
    except OSError:
        return
