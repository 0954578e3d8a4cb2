"""How this process becomes one of several: it meets the others, and then JAX connects them.

JAX is imported where it is needed: the command line reads its arguments before.
"""

import functools
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from feddpa_jax.cli import streams
from feddpa_jax.cli.meeting import meet
from feddpa_jax.types import UserError

# Seconds that processes wait for each other at the start, and until a silent one counts as gone.
WAIT = 300.0
HEARTBEAT = 60.0
# Seconds that JAX has to connect processes that have met, and by which it is later than we are:
# when its own time is over, it aborts.
CONNECT = 30.0
LATER = 120.0


def check_place(
    coordinator: str | None, count: int | None, number: int | None, wait: float, heartbeat: float
) -> None:
    """Refuses a place among processes that cannot be; arguments as for `join`.

    Raises:
      UserError: some are missing or wrong.
    """
    for option, seconds in (("--wait", wait), ("--heartbeat", heartbeat)):
        # A larger number would not fit where C++ counts milliseconds.
        if not 1 <= seconds <= 10**6:
            raise UserError(f"{option}: {seconds:g} is not a number of seconds from 1 to 1000000")
    named = {"--coordinator": coordinator, "--processes": count, "--process": number}
    missing = [option for option, value in named.items() if value is None]
    if 0 < len(missing) < 3:
        raise UserError(f"{', '.join(missing)}: missing; {', '.join(named)} go together")
    if coordinator is not None:
        assert count is not None and number is not None
        _address(coordinator)
        if count < 1:
            raise UserError(f"--processes: {count} is not a positive number")
        if not 0 <= number < count:
            raise UserError(f"--process: {number} is not one of 0 to {count - 1} (--processes)")


def join(
    coordinator: str | None,
    count: int | None,
    number: int | None,
    wait: float = WAIT,
    heartbeat: float = HEARTBEAT,
) -> None:
    """Makes this process one of several; before anything touches a JAX backend.

    Args:
      coordinator: HOST:PORT of the first process. If all three are None, JAX finds them out from
        the TPU pod, SLURM or Open MPI that it runs under.
      count: how many processes there are.
      number: which one this is, from 0.
      wait: seconds until the others must have come; past that the process ends, if need be hard.
      heartbeat: seconds after which a silent process counts as gone, and all others end.

    Raises:
      UserError: some are missing or wrong, or the others cannot be found.
    """
    check_place(coordinator, count, number, wait, heartbeat)
    # Before the meeting, so that JAX can connect at once those who have met.
    import jax

    if coordinator is not None:
        assert count is not None and number is not None
        meet(*_address(coordinator), count, number, wait)
    streams.apart()
    # With it SIGTERM would be a notice to ask about, and no longer end the process.
    jax.config.update("jax_enable_preemption_service", False)
    limit = wait if coordinator is None else CONNECT
    with _at_most(limit, f"--coordinator: not all processes connected within {limit:g} s"):
        _initialize(coordinator, count, number, round(limit + LATER), round(heartbeat))
    # Heartbeats have begun: from here on a process that is lost is noticed.
    devices = Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        raise UserError(
            f"--distributed: the processes have {sorted(devices.values())} devices; give each as "
            "many"
        )


def _initialize(
    coordinator: str | None, count: int | None, number: int | None, limit: int, heartbeat: int
) -> None:
    import jax

    initialize = functools.partial(
        jax.distributed.initialize,
        initialization_timeout=limit,
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=heartbeat,
    )
    try:
        if coordinator is None:
            initialize()
        else:
            # Without detection, which under SLURM would leave each process one local device.
            initialize(coordinator, count, number, cluster_detection_method="deactivate")
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        if coordinator is None:
            raise UserError(
                f"--distributed: no TPU pod, SLURM or Open MPI job was found ({reason}); name "
                "--coordinator HOST:PORT --processes N --process I"
            ) from None
        raise UserError(
            f"--coordinator: process {number} of {count} did not meet the others at {coordinator} "
            f"({reason}); start all of them, with the address of process 0 and a free port"
        ) from None


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else 0
    try:
        host.encode("idna")
    except UnicodeError:  # Such as a label of more than 63 characters, or an empty one.
        host = ""
    if not host or not 0 < number < 2**16:
        raise UserError(f"--coordinator: {coordinator!r} is not HOST:PORT, as in 10.0.0.1:8476")
    return host.removeprefix("[").removesuffix("]"), number


@contextmanager
def _at_most(seconds: float, problem: str) -> Iterator[None]:
    """Context that ends the process when it takes longer: C++ that waits hears no exception."""

    def end() -> None:
        print(
            f"feddpa: error: {problem}; start all of them, or give them more time with --wait",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
