"""Ctrl-C at any moment: one line, exit code 130, no traceback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from feddpa_jax.cli.interrupt import LINE

ROOT = Path(__file__).parents[2]
STOPPED = (130, "", f"{LINE}\n")


@pytest.fixture(scope="module", autouse=True)
def not_ignored() -> Iterator[None]:
    """Also where the tests run in the background of a script, and ignore SIGINT like all there."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(*command: str) -> subprocess.Popen[str]:
    """A program that has taken over SIGINT; before, it cannot be interrupted cleanly."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    tasks = Path(f"/proc/{process.pid}/task")
    while process.poll() is None and len(list(tasks.iterdir())) < 2:
        time.sleep(0.005)
    return process


def start_program(body: str) -> subprocess.Popen[str]:
    """A program that is about to begin its body."""
    process = start("-c", program(body))
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def stop(process: subprocess.Popen[str], *delays: float) -> tuple[int, str, str]:
    """What it says when it gets SIGINT after each of the delays."""
    for delay in delays:
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
    try:
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()  # Nothing is left to run for ever beside other tests.
    return process.returncode, out, error


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize("delay", [0.0, 0.2, 0.6, 1.2])
def test_while_the_program_starts(delay: float):
    code, out, error = stop(start("-m", "feddpa_jax", "data"), delay)
    # Where it had come to its end, the signal is late.
    assert (code, error) in ((130, f"{LINE}\n"), (0, "")), error
    assert delay > 0.2 or (code, out) == (130, "")


def test_while_the_compiler_works():
    """Its threads outlive the main one, beside which the interpreter's own end would crash."""
    process = start("-m", "feddpa_jax", "plan", "--config", "configs/tiny.yaml")
    assert process.stdout is not None
    assert process.stdout.readline()  # It says what it compiles before it does.
    assert stop(process, 0.3)[::2] == STOPPED[::2]


def program(body: str) -> str:
    lines = ["import gc, hashlib, os, sys, time", "from feddpa_jax.cli import interrupt"]
    lines += ["interrupt.install()", "print('ready', flush=True)", *body.splitlines()]
    return "\n".join(lines)


def test_work_cleans_up():
    body = """
try:
    with interrupt.working():
        time.sleep(30)
except KeyboardInterrupt:
    print("cleaned up")
    interrupt.tell()
    sys.exit(interrupt.CODE)
"""
    found = stop(start_program(body), 0.5)
    assert found == (130, "cleaned up\n", f"{LINE}\n")


def test_one_press_may_come_twice():
    body = """
interrupt.ONE_PRESS = 20.0
try:
    with interrupt.working():
        time.sleep(30)
except KeyboardInterrupt:
    time.sleep(0.3)
    print("cleaned up")
    interrupt.tell()
    sys.exit(interrupt.CODE)
"""
    found = stop(start_program(body), 0.5, 0.05)
    assert found == (130, "cleaned up\n", f"{LINE}\n")


@pytest.mark.parametrize(
    "body",
    [
        # C that does not return, and holds no lock.
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
        # A callback that may not raise.
        "gc.callbacks.append(lambda *_: time.sleep(30)); gc.collect(); time.sleep(30)",
        # A library that takes everything for its own failure.
        "while True:\n        try: time.sleep(30)\n        except BaseException: pass",
    ],
)
def test_work_that_does_not_listen(body: str):
    process = start_program(f"with interrupt.working():\n    {body}")
    begun = time.monotonic()
    assert stop(process, 0.5) == STOPPED
    assert time.monotonic() - begun < 10


def test_what_starts_is_not_asked():
    body = "try: time.sleep(30)\nexcept BaseException: print('swallowed', flush=True)"
    assert stop(start_program(f"{body}\ntime.sleep(30)"), 0.5) == STOPPED


def test_twice_ends_at_once():
    work = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    process = start_program(f"interrupt.PATIENCE = 50.0\nwith interrupt.working():\n    {work}")
    begun = time.monotonic()
    assert stop(process, 0.5, 0.8) == STOPPED
    assert time.monotonic() - begun < 25


def test_ignored_stays_ignored():
    """As in the background of a script."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{program('')}"
    ended = "\nos.kill(os.getpid(), signal.SIGINT); print('went on')"
    out = subprocess.check_output([sys.executable, "-c", code + ended], cwd=ROOT, text=True)
    assert out == "ready\nwent on\n"


def test_sigterm_ends_it():
    process = start("-m", "feddpa_jax", "data")
    os.kill(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=30) == ("", "") and process.returncode == -signal.SIGTERM
