"""Peak memory of this process, and of the device where that has memory of its own."""

import resource
from pathlib import Path
from typing import Any

import jax

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(f"{field}:")]
    return int(found[0][1]) * 1024 if found else None


def resident_bytes() -> int:
    """Memory that the process holds now."""
    return _status("VmRSS") or _ever()


def peak_bytes() -> int:
    """The most that it held since `reset_peak`; where that is not told, since it began."""
    return _status("VmHWM") or _ever()


def reset_peak() -> None:
    """Starts a new peak, where the system allows it."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def device_peak_bytes() -> int | None:
    """The most that JAX held on the first device; None where it shares the process's memory."""
    statistics: dict[str, Any] = jax.devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def _ever() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
