"""The processes of a run: how they agree, and end; `join` says how they find each other.

All processes run the same program on the same data and hold the same state; together their devices
are one mesh. The first one alone reads and writes the run's folder: what it finds there, and why it
could not, the others have from it by `from_first`. With one process nothing is sent.

JAX is imported where it is needed: the command line reads its arguments before.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from feddpa_jax.types import UserError

Value = TypeVar("Value")

# Bytes that are sent at once: bounds the memory of a broadcast, which every device takes part in.
PIECE = 2**26
# Bytes of what each process tells all others.
NOTE = 1024
# Seconds that a failing first process gives the others to say what they failed of: they are ended
# hard when it is gone, because it is where they meet.
GRACE = 2.0
# What the libraries that connect processes say when one is gone, in small letters: Gloo, NCCL,
# gRPC, and the statuses of JAX's coordination service.
_LOSS = (
    *("gloo", "nccl", "coordination", "heartbeat", "barrier", "preempted"),
    *("connection closed", "connection reset", "connection refused", "closed by peer"),
    *("reset by peer", "broken pipe", "socket closed", "socket timeout", "collective"),
    *("unavailable:", "deadline_exceeded:", "aborted:", "cancelled:", "failed_precondition:"),
)

_ARRAY = "__array__"


def joined() -> bool:
    """Whether this process is one of several that found each other."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def several() -> bool:
    """Whether other processes take part."""
    import jax

    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that reads and writes the run's folder."""
    import jax

    return jax.process_index() == 0


def from_first(make: Callable[[], Value]) -> Value:
    """What the first process makes, on every process; all of them call this at the same place.

    Args:
      make: called on the first process alone. It returns None or JSON that may hold arrays; the
        others get lists for tuples.

    Raises:
      UserError: the first process did; on every process.
    """
    if not several():
        return make()
    if not is_first():
        answer: dict[str, Any] = _unpack(_broadcast(b""))
    else:
        try:
            answer = {"value": make()}
        except UserError as error:
            answer = {"error": str(error)}
        _broadcast(_pack(answer))
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def together(make: Callable[[], Value]) -> Value:
    """What every process makes for itself; if one of them cannot, none goes on.

    Raises:
      UserError: of the first process that had one.
    """
    if not several():
        return make()
    made: list[Value] = []
    problem = ""
    try:
        made.append(make())
    except UserError as error:
        problem = str(error)
    for number, text in enumerate(_tell(problem)):
        if text:
            raise UserError(f"process {number}: {text}")
    return made[0]


def check_same(what: Mapping[str, str]) -> None:
    """Refuses to go on with processes that work on different things.

    Args:
      what: text that must be the same everywhere, by what it is.

    Raises:
      UserError: which of them differs, and on which process.
    """
    if not several():
        return
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in what.items()}
    first, *others = (json.loads(text) for text in _tell(json.dumps(digests)))
    for number, own in enumerate(others, start=1):
        for name in what:
            if own[name] != first[name]:
                raise UserError(
                    f"process {number}: its {name} is not that of process 0; give every process "
                    "the same command and the same files"
                )


def lost_another(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, comes from another process that is gone.

    JAX raises such an error as JaxRuntimeError, RuntimeError or ValueError, wherever a result is
    waited for. A UserError is ours, whatever led to it: a download may have failed.
    """
    if isinstance(error, UserError) or not joined():
        return False
    while error is not None:
        if speaks_of_loss(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def speaks_of_loss(error: BaseException) -> bool:
    """Whether an error's type and text are those of a connection between processes that broke."""
    if isinstance(error, UserError) or not isinstance(error, (RuntimeError, ValueError, OSError)):
        return False
    text = str(error).lower()
    return any(word in text for word in _LOSS)


def part() -> None:
    """Ends what `join` began: waits for the others, and never fails, because the work is done."""
    if joined():
        import jax

        with suppress(Exception):
            jax.distributed.shutdown()


def leave(code: int) -> int:
    """Ends a failed process at once, without waiting for the others as JAX would; else the code."""
    if not code or not joined():
        return code
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    if is_first():
        time.sleep(GRACE)
    os._exit(code)


def _tell(text: str) -> list[str]:
    """What every process tells, in their order."""
    from jax.experimental import multihost_utils

    note = np.zeros(NOTE, np.uint8)
    # Cut within a character, its beginning is dropped below.
    content = np.frombuffer(text.encode()[:NOTE], np.uint8)
    note[: len(content)] = content
    notes = multihost_utils.process_allgather(note)
    return [bytes(own).rstrip(b"\0").decode(errors="ignore") for own in notes]


def _broadcast(content: bytes) -> bytes:
    """The first process's bytes."""
    from jax.experimental.multihost_utils import broadcast_one_to_all

    # As digits, because 32 bits, all that JAX has by default, count no more than 2 GiB.
    digits = np.frombuffer(b"%020d" % len(content), np.uint8)
    size = int(bytes(broadcast_one_to_all(digits)))
    # Sizes are rounded up: each compiles a program.
    piece = min(PIECE, max(NOTE, 1 << max(0, size - 1).bit_length()))
    whole = []
    for start in range(0, size, piece):
        part = np.zeros(piece, np.uint8)
        own = np.frombuffer(content[start : start + piece], np.uint8)
        part[: len(own)] = own
        whole.append(bytes(broadcast_one_to_all(part)))
    return b"".join(whole)[:size]


def _pack(value: Any) -> bytes:
    """JSON with arrays as bytes.

    >>> _unpack(_pack({"a": [np.arange(3, dtype=np.int8), None]}))
    {'a': [array([0, 1, 2], dtype=int8), None]}
    """
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}

    def keep(leaf: Any) -> dict[str, str]:
        name = str(len(arrays))
        arrays[name] = np.asarray(leaf, order="C")
        return {_ARRAY: name}

    text = json.dumps(value, default=keep)
    return save({**arrays, "json": np.frombuffer(text.encode(), np.uint8)})


def _unpack(content: bytes) -> Any:
    from safetensors.numpy import load

    arrays = load(content)
    text = bytes(arrays.pop("json"))
    return json.loads(text, object_hook=lambda d: arrays[d[_ARRAY]] if _ARRAY in d else d)
