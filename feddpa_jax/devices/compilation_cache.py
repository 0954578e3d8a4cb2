"""Compiled programs are kept on disk, so that a program is compiled once on a machine.

JAX's persistent compilation cache, in a folder of this package's own with a bound on its size. A
program's key is what it computes, for which devices and with which compiler; the cache holds no
data of clients, whose tokens, adapters and weights are arguments of programs.
"""

import contextlib
import hashlib
import logging
import os
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from feddpa_jax.files.cache_root import FOLDER, cache_root
from feddpa_jax.types import UserError

# An environment variable: "off" or the bound in bytes.
BOUND = "FEDDPA_COMPILATION_CACHE"
DEFAULT_BOUND = 2 * 2**30
# The cache looks at every entry whenever it adds one, so they stay few however small they are.
MOST_ENTRIES = 4096

_ENTRY, _USED = "-cache", "-atime"
_LOCK = ".lockfile"
_CPU = Path("/proc/cpuinfo")
# What tells of which instructions a program for this processor may consist.
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU ")

_log = logging.getLogger(__name__)


def keep_compiled_programs(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Turns JAX's persistent compilation cache on for this process, unless it is set up already.

    The folder is `compilation/` below `$FEDDPA_CACHE`, else `$XDG_CACHE_HOME/feddpa_jax`, else
    `~/.cache/feddpa_jax`. `FEDDPA_COMPILATION_CACHE` is `off`, or the most bytes that are kept (2
    GiB if it is not set); programs not used for longest are removed first. Where JAX has a cache
    folder already (`JAX_COMPILATION_CACHE_DIR`), or its cache is off, nothing is changed. A folder
    that cannot be written is said so once in the log, and the process goes on without.

    Args:
      environment: the variables.

    Returns:
      The folder that this process keeps programs in; None if it keeps none, or JAX's own settings
      hold.

    Raises:
      UserError: `FEDDPA_COMPILATION_CACHE` is neither `off` nor a number of bytes.

    >>> keep_compiled_programs({"FEDDPA_COMPILATION_CACHE": "off"}) is None
    True
    """
    bound = _bound(environment)
    if not bound or _of_jax("jax_compilation_cache_dir"):
        return None
    if not _of_jax("jax_enable_compilation_cache"):
        return None
    try:
        folder = cache_folder(environment)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_own(folder)
        tidy(folder)
    except (OSError, RuntimeError, NotImplementedError) as error:  # No home; no locks.
        reason = getattr(error, "strerror", None) or error
        _log.warning(
            "compiled programs are not kept (%s); set %s to a folder of your own, or %s=off",
            reason,
            FOLDER,
            BOUND,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    settings = {
        "jax_compilation_cache_max_size": bound,
        # Small programs too: there are many of them.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        if name.upper() not in environment:
            jax.config.update(name, value)
    # An entry that cannot be read is compiled anew, one that cannot be written is left out.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    _start_anew()
    return folder


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where programs that this machine compiles are kept.

    Machines that share a home folder may differ in the instructions that they know, so each kind of
    processor has a folder of its own.

    Raises:
      RuntimeError: there is no home folder.
    """
    return cache_root(environment) / "compilation" / _processor()


def tidy(folder: Path) -> None:
    """Removes what a killed process left half written, and the oldest of too many entries.

    Raises:
      OSError: the folder cannot be written, or has no locks.
    """
    from filelock import FileLock, Timeout

    with contextlib.suppress(Timeout), FileLock(folder / _LOCK, timeout=0):
        # An entry is complete once its time of use is beside it; without one, nothing is added any
        # more. Both are written under the lock.
        complete = {path.name.removesuffix(_USED): path for path in folder.glob(f"*{_USED}")}
        entries = {path.name.removesuffix(_ENTRY): path for path in folder.glob(f"*{_ENTRY}")}
        gone = set(entries) ^ set(complete)
        if len(entries) > MOST_ENTRIES:
            used = sorted(set(entries) & set(complete), key=lambda name: _time(complete[name]))
            gone |= set(used[: -MOST_ENTRIES // 2])
        for name in gone:
            for path in (entries.get(name), complete.get(name)):
                if path is not None:
                    path.unlink(missing_ok=True)


def _check_own(folder: Path) -> None:
    """Refuses programs that somebody else may have put there: they would run as this user."""
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise OSError(None, f"others may write to {folder}")


def _time(path: Path) -> int:
    return int.from_bytes(path.read_bytes(), "little")


def _bound(environment: Mapping[str, str]) -> int:
    """The most bytes that are kept; 0 for none."""
    given = environment.get(BOUND, "").strip()
    if not given:
        return DEFAULT_BOUND
    if given == "off":
        return 0
    if not given.isdecimal() or not given.isascii() or len(given) > 18:
        raise UserError(
            f"{BOUND}: {given!r} is neither off nor a number of bytes; use off, or for example "
            f"{DEFAULT_BOUND}"
        )
    return int(given)


def _processor() -> str:
    """A short name of this machine's kind of processor."""
    try:
        first, _, _ = _CPU.read_text().partition("\n\n")
        about = [line for line in first.splitlines() if line.startswith(_CPU_FIELDS)]
    except OSError:
        about = [platform.processor()]
    digest = hashlib.sha256("\n".join(about).encode()).hexdigest()[:8]
    return f"{platform.system()}-{platform.machine()}-{digest}".lower()


def _of_jax(setting: str) -> Any:
    return getattr(jax.config, setting)


def _start_anew() -> None:
    """Makes JAX look at its settings again: it decides at the first program that is compiled."""
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()
