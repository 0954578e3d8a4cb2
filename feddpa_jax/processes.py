"""Runs over several processes: one program on all their devices, files and words by the first.

Every process reads data and base and follows the same schedule, which depends on seed, round and
client alone. Files of the run are read and written by the first process, and what it read, or why
it could not, is told to the others; so the run's folder need not be on a disk that all see.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from feddpa_jax.types import UserError

_ARRAY = "array of the message"
Value = TypeVar("Value")


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the other processes; before anything else of JAX is used.

    Args:
      coordinator: "host:port" of the first process; None where JAX finds out (TPU, SLURM, MPI).
      processes: how many there are.
      process: which of them this one is, from 0.

    Raises:
      UserError: the others cannot be reached or found out.
    """
    # Without it, CPU devices of different processes cannot exchange anything; no other kind minds.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--distributed: the other processes were not found ({reason}); on machines that JAX "
            "does not know, give --coordinator HOST:PORT --processes N --process I"
        ) from None


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that reads and writes the run's files."""
    return jax.process_index() == 0


def from_first(make: Callable[[], Value]) -> Value:
    """What the first process makes, on every process; others do not call `make`.

    Every process must come here at the same point. With one process it is `make()`.

    Args:
      make: gives nested dictionaries and lists (named and other tuples become lists) of numbers,
        text, None and numpy arrays.

    Raises:
      UserError: `make` raised it, on whichever process this is.
    """
    if not several():
        return make()
    message = b""
    if is_first():
        try:
            message = _pack({"value": make()})
        except UserError as error:
            message = _pack({"error": str(error)})
    told = _unpack(_broadcast(message))
    if "error" in told:
        raise UserError(told["error"])
    return told["value"]


def _broadcast(message: bytes) -> bytes:
    from jax.experimental.multihost_utils import broadcast_one_to_all

    size = int(broadcast_one_to_all(np.array(len(message), np.int32)))
    content = np.zeros(size, np.uint8)
    if is_first():
        content[:] = np.frombuffer(message, np.uint8)
    return np.asarray(broadcast_one_to_all(content)).astype(np.uint8).tobytes()


def _pack(value: Any) -> bytes:
    """JSON with the arrays behind it, as safetensors has them."""
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {str(key): plain(inner) for key, inner in part.items()}
        if isinstance(part, list | tuple):
            return [plain(inner) for inner in part]
        if isinstance(part, np.ndarray):
            arrays[str(len(arrays))] = np.ascontiguousarray(part)
            return {_ARRAY: str(len(arrays) - 1)}
        return part

    text = json.dumps(plain(value)).encode()
    return len(text).to_bytes(8, "little") + text + save(arrays)


def _unpack(message: bytes) -> Any:
    from safetensors.numpy import load

    end = 8 + int.from_bytes(message[:8], "little")
    arrays = load(message[end:])

    def whole(part: Any) -> Any:
        if isinstance(part, dict):
            if part.keys() == {_ARRAY}:
                return arrays[part[_ARRAY]]
            return {key: whole(inner) for key, inner in part.items()}
        return [whole(inner) for inner in part] if isinstance(part, list) else part

    return whole(json.loads(message[8:end]))
