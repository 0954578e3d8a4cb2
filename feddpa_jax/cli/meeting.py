"""How processes meet, before JAX: everyone tells process 0 who it is, and none goes on alone.

JAX would wait in C++ and abort without saying who is missing. Process 0 listens at the address
that JAX's coordinator will have; it closes that port when all have come, and JAX opens it again.
Messages are single lines of JSON: a newcomer's `{"process": 1, "processes": 2, ...}`, and the
answer `{"go": true}` or `{"error": "..."}`.
"""

import importlib.metadata
import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from feddpa_jax.types import UserError

# Seconds between attempts to reach process 0, and for process 0 to reach itself.
RETRY = 0.2
SELF = 10.0
# Bytes of the longest message.
LONGEST = 2**16
# What must be the same in all processes.
_PACKAGES = ("feddpa_jax", "jax", "jaxlib", "numpy")


def meet(host: str, port: int, count: int, number: int, wait: float) -> None:
    """Returns when all processes have come.

    Args:
      host: address of process 0.
      port: where it listens.
      count: how many processes there are.
      number: which one this is, from 0.
      wait: for so many seconds at most.

    Raises:
      UserError: not all came, or this one is refused: its number is taken, it counts other
        processes, or it has other versions of the packages.
    """
    own = introduction(count, number)
    if number == 0:
        with _listen(host, port) as listener:
            _Host(listener, own, wait).gather(host, port)
    else:
        _join(host, port, own, wait)


def introduction(count: int, number: int) -> dict[str, Any]:
    """What a process tells of itself."""
    versions = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"process": number, "processes": count, "versions": versions, "id": os.urandom(8).hex()}


def refusal(own: dict[str, Any], other: dict[str, Any]) -> str:
    """Why a process cannot be one of ours; empty if it can.

    >>> refusal(introduction(2, 0), introduction(3, 1))
    '--processes: process 1 says 3, process 0 says 2; give all of them the same'
    """
    number = other.get("process")
    if other.get("processes") != own["processes"]:
        return (
            f"--processes: process {number} says {other.get('processes')}, process 0 says "
            f"{own['processes']}; give all of them the same"
        )
    versions = other.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    for name, version in own["versions"].items():
        if versions.get(name) != version:
            return (
                f"--process: process {number} has {name} {versions.get(name)}, process 0 has "
                f"{version}; install the same on all machines"
            )
    return ""


def _listen(host: str, port: int) -> socket.socket:
    try:
        with suppress(OSError):
            if socket.has_dualstack_ipv6():
                family = socket.AF_INET6
                return socket.create_server(("", port), family=family, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"--coordinator: process 0 cannot listen at port {port} of {host} "
            f"({_reason(error)}); name a free port, the same for all processes, and start one "
            "process with --process 0"
        ) from None


class _Host:
    """Process 0's side: who has come."""

    def __init__(self, listener: socket.socket, own: dict[str, Any], wait: float):
        self.own, self.wait = own, wait
        self.came: dict[int, socket.socket] = {}
        self.refused: list[str] = []
        self.open: list[socket.socket] = []
        self.reached_itself = False
        self.listener = listener
        self.select = selectors.DefaultSelector()
        listener.setblocking(False)
        self.select.register(listener, selectors.EVENT_READ, self.accept)

    def gather(self, host: str, port: int) -> None:
        start = time.monotonic()
        count = self.own["processes"]
        probe = self.call_itself(host, port)
        try:
            while len(self.came) < count - 1 or not self.reached_itself:
                now = time.monotonic() - start
                if not self.reached_itself and now > min(SELF, self.wait):
                    raise UserError(
                        f"--coordinator: {host}:{port} is not this machine, which is to be process "
                        "0; name the address of the machine that process 0 is started on"
                    )
                if now > self.wait:
                    self.tell({"error": self.missing()})
                    raise UserError(self.missing())
                for key, _ in self.select.select(RETRY):
                    key.data(key.fileobj)
            self.tell({"go": True})
        finally:
            for friend in [*self.open, probe]:
                friend.close()
            self.select.close()

    def tell(self, message: dict[str, Any]) -> None:
        """Answers everybody who has come."""
        for friend in self.came.values():
            _send(friend, message)

    def call_itself(self, host: str, port: int) -> socket.socket:
        """Whoever the others reach at the address must be this process."""
        try:
            probe = socket.create_connection((host, port), timeout=min(SELF, self.wait))
        except OSError as error:
            raise UserError(
                f"--coordinator: process 0 does not reach itself at {host}:{port} "
                f"({_reason(error)}); name an address of the machine that process 0 is started on"
            ) from None
        _send(probe, self.own)
        probe.setblocking(False)
        self.select.register(probe, selectors.EVENT_READ, self.answered)
        return probe

    def answered(self, probe: socket.socket) -> None:
        """Somebody else is process 0 there, and says so."""
        self.select.unregister(probe)
        answer = _answer(probe)
        if "error" in answer and not self.reached_itself:
            raise UserError(str(answer["error"]))

    def accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            friend, _ = listener.accept()
            friend.setblocking(False)
            self.open.append(friend)
            self.select.register(friend, selectors.EVENT_READ, self.hearing(b""))

    def hearing(self, before: bytes) -> Callable[[socket.socket], None]:
        def hear(friend: socket.socket) -> None:
            try:
                more = friend.recv(LONGEST)
            except OSError:
                more = b""
            if not more or len(before) > LONGEST:
                self.drop(friend)
                return
            said, whole, _ = (before + more).partition(b"\n")
            if not whole:
                self.select.modify(friend, selectors.EVENT_READ, self.hearing(said))
                return
            other = _read(said)
            if "process" not in other:
                self.drop(friend)
                return
            self.admit(friend, other)

        return hear

    def admit(self, friend: socket.socket, other: dict[str, Any]) -> None:
        number: Any = other.get("process")
        if other.get("id") == self.own["id"]:
            self.reached_itself = True
            self.drop(friend)
            return
        error = refusal(self.own, other)
        if not error and number not in range(self.own["processes"]):
            error = f"--process: {number!r} is no number of a process"
        elif not error and (number == 0 or number in self.came):
            error = (
                f"--process: another process {number} has come already; give each its own number, "
                f"0 to {self.own['processes'] - 1}"
            )
        if error:
            self.refused.append(error)
            _send(friend, {"error": error})
            self.drop(friend)
            return
        self.came[number] = friend
        self.select.modify(friend, selectors.EVENT_READ, self.drop)

    def drop(self, friend: socket.socket) -> None:
        """One that said something wrong, or that is gone again."""
        self.came = {number: known for number, known in self.came.items() if known is not friend}
        self.select.unregister(friend)
        friend.close()

    def missing(self) -> str:
        count = self.own["processes"]
        gone = [str(number) for number in range(1, count) if number not in self.came]
        refused = f"; refused: {self.refused[-1].partition(';')[0]}" if self.refused else ""
        return (
            f"--coordinator: {len(self.came) + 1} of {count} processes came within {self.wait:g} s "
            f"(missing: process {', '.join(gone)}{refused}); start all of them, or give them more "
            "time with --wait"
        )


def _join(host: str, port: int, own: dict[str, Any], wait: float) -> None:
    """The other processes' side."""
    deadline = time.monotonic() + wait
    stranger = "what answers there is no waiting process 0; a run that has begun takes nobody in"
    reason = "it does not answer"
    reached = False
    while (left := deadline - time.monotonic()) > 0:
        reached = False
        try:
            with socket.create_connection((host, port), timeout=left) as friend:
                reached = True
                _send(friend, own)
                # Process 0 may have started to wait later, and says better who is missing.
                friend.settimeout(max(0.0, deadline - time.monotonic()) + 5 * RETRY)
                answer = _answer(friend)
            if answer.get("go"):
                return
            if "error" in answer:
                raise UserError(str(answer["error"]))
            reached, reason = False, stranger
        except TimeoutError as error:
            reason = _reason(error)
        except OSError as error:
            reached, reason = False, stranger if reached else _reason(error)
        time.sleep(max(0.0, min(RETRY, deadline - time.monotonic())))
    if reached:
        raise UserError(
            f"--coordinator: not all of the {own['processes']} processes came within {wait:g} s; "
            "start all of them, or give them more time with --wait"
        )
    raise UserError(
        f"--coordinator: no process 0 at {host}:{port} within {wait:g} s ({reason}); start process "
        "0 there, name its address and port, or give it more time with --wait"
    )


def _answer(friend: socket.socket) -> dict[str, Any]:
    """A whole message; empty if it is none of ours."""
    said = b""
    while not said.endswith(b"\n") and len(said) < LONGEST:
        more = friend.recv(LONGEST)
        if not more:
            break
        said += more
    return _read(said)


def _read(said: bytes) -> dict[str, Any]:
    try:
        message = json.loads(said)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _send(friend: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):
        friend.sendall(json.dumps(message).encode() + b"\n")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).partition(" (while")[0]
