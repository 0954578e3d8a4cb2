"""The parent of one of several processes says how it ended; and which errors speak of a loss."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from feddpa_jax.cli import fields
from feddpa_jax.cli.interrupt import LINE
from feddpa_jax.cli.program import main
from feddpa_jax.cli.supervise import KILLED, LOST, UNMET, Filter
from feddpa_jax.devices import processes
from feddpa_jax.devices.processes import lost_another, speaks_of_loss
from feddpa_jax.types import UserError

ROOT = Path(__file__).parents[2]
POLLED = (
    "E1128 03:46:49.250160    9889 coordination_service_agent.cc:289] Polled an error from "
    "coordination service (this can be an error from this or another task)."
)
FATAL = (
    "F1128 03:47:14.686701   10253 client.h:80] Terminating process because the JAX distributed "
    "service detected fatal errors.\nRPC: /xla.coordination.CoordinationService/PollForError"
)
ALONE = FATAL.replace("PollForError", "RegisterTask")
START = """
import os, signal, sys, time
from feddpa_jax.cli import supervise
code = supervise.split()
if code is not None:
    sys.exit(code)
def say(text):
    os.write(2, text.encode() + b"\\n")
"""


@pytest.mark.parametrize(
    ("body", "code", "out", "error"),
    [
        ("print('done')", 0, "done\n", ""),
        ("say('careful'); sys.exit(7)", 7, "", "careful\n"),
        (f"say({FATAL!r}); os.abort()", 2, "", f"feddpa: error: {LOST}\n"),
        (f"say({POLLED!r}); say('what()'); os.abort()", 2, "", f"feddpa: error: {LOST}\n"),
        (f"say({ALONE!r}); os.abort()", 2, "", f"feddpa: error: {UNMET}\n"),
        # It was just about to say it better.
        (f"say('feddpa: error: x'); say({FATAL!r}); os.abort()", 2, "", "feddpa: error: x\n"),
        (f"say({POLLED!r}); say('feddpa: error: x'); sys.exit(2)", 2, "", "feddpa: error: x\n"),
        # All were stopped, and another one was gone before this one had cleaned up.
        (f"say({LINE!r}); say({FATAL!r}); os.abort()", 130, "", f"{LINE}\n"),
        # A fault of the program is told whole.
        (f"say({POLLED!r}); say('Traceback'); sys.exit(1)", 1, "", f"{POLLED}\nTraceback\n"),
        ("say('assertion'); os.abort()", -signal.SIGABRT, "", "assertion\n"),
        ("os.kill(os.getpid(), 9)", 137, "", f"feddpa: error: {KILLED}\n"),
        ("os.kill(os.getppid(), 15); time.sleep(20)", -signal.SIGTERM, "", ""),
        # Something that it started lives on, and holds the pipe.
        ("if os.fork(): sys.exit(3)\nos.close(1)\ntime.sleep(5)", 3, "", ""),
    ],
)
def test_how_it_ends(body: str, code: int, out: str, error: str):
    begun = time.monotonic()
    command = [sys.executable, "-c", START + body]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.wait(timeout=30) == code
    assert time.monotonic() - begun < 5 or "fork" not in body
    assert process.communicate(timeout=30) == (out, error)


def test_it_dies_with_its_parent():
    command = [sys.executable, "-c", START + "print(os.getpid(), flush=True); time.sleep(30)"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        begun = time.monotonic()
        assert process.stdout.read() == ""
        assert time.monotonic() - begun < 15
    # Its files are closed a moment before it is gone, and it may be that nobody reaps it.
    state = Path(f"/proc/{child}/stat")
    until = time.monotonic() + 20
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() < until
        time.sleep(0.05)


def test_lines_are_passed_on_at_once():
    passed: list[bytes] = []
    lines = Filter(passed.append)
    lines.add(b"one\ntw")
    assert passed == [b"one\n"]
    lines.add(b"o\nW1128 03:46:49.2 98 slow_compile.cc:3] slow\n")
    assert b"".join(passed).count(b"\n") == 3 and not lines.held


@pytest.mark.parametrize(
    "error",
    [
        ValueError(
            "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:538] Read "
            "error [127.0.0.1]:12711: Connection reset by peer"
        ),
        jax.errors.JaxRuntimeError("FAILED_PRECONDITION: Buffer Definition Event: Gloo all-reduce"),
        jax.errors.JaxRuntimeError("UNAVAILABLE: Task /job:jax_worker/task:1 heartbeat timeout."),
        RuntimeError("DEADLINE_EXCEEDED: Barrier timed out. Id: PjRT_Client_Connect::0"),
        jax.errors.JaxRuntimeError("INTERNAL: NCCL operation ncclAllReduce failed: remote error"),
        ValueError("Connection closed by peer [10.0.0.2]:1234"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
)
def test_errors_of_a_loss(monkeypatch, capsys, error: Exception):
    assert speaks_of_loss(error)
    assert not lost_another(error)  # One process has nobody to lose.
    monkeypatch.setattr(processes, "joined", lambda: True)
    assert lost_another(error)
    monkeypatch.setattr(processes, "leave", lambda code: code)
    monkeypatch.setattr(fields, "run", lambda *given: (_ for _ in ()).throw(error))
    assert main(["fields"]) == 2
    assert capsys.readouterr().err == f"feddpa: error: {LOST}\n"
    later = KeyError("x")
    later.__context__ = error
    assert lost_another(later)


@pytest.mark.parametrize(
    "error",
    [
        UserError("nccl and gloo in a message of ours"),
        ValueError("operands could not be broadcast together with shapes (3,) (4,)"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes."),
        KeyError("gloo"),
    ],
)
def test_errors_of_our_own(monkeypatch, error: Exception):
    monkeypatch.setattr(processes, "joined", lambda: True)
    assert not lost_another(error)
    ours = UserError("the download failed")
    ours.__context__ = ConnectionResetError(104, "Connection reset by peer")
    assert not lost_another(ours)
