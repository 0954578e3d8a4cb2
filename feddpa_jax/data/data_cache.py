"""Data that were prepared once are kept on disk: populations, and their tokens.

An entry is a folder below `data-UID/` in `$FEDDPA_CACHE`, else `$XDG_CACHE_HOME/feddpa_jax`, else
`~/.cache/feddpa_jax`; its name is a digest of everything that it depends on. It is there whole or
not at all. One process builds it, others wait; a damaged one is built again.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from feddpa_jax.data.seal import UnsealedError, unseal
from feddpa_jax.files.cache_root import FOLDER, cache_root
from feddpa_jax.files.disk import (
    PRIVATE_FOLDER,
    aside_of,
    discard,
    sync_tree,
    writing,
)
from feddpa_jax.types import UserError

# The most bytes of all entries; those not used for longest are removed first.
BOUND, DEFAULT_BOUND = "FEDDPA_DATA_CACHE", 64 * 2**30

_log = logging.getLogger(__name__)


def cached(
    seal: str,
    version: int,
    key: Mapping[str, Any],
    build: Callable[[Path], None],
    environment: Mapping[str, str] = os.environ,
) -> Path:
    """The folder of an entry, which is built if it is not there or not whole.

    Args:
      seal: the name of the file that `build` writes last (see `data.seal`).
      version: of what it says.
      key: all that the entry depends on, as JSON.
      build: writes the entry into a new folder.
      environment: the variables.

    Raises:
      UserError: it cannot be written, or `build` finds something wrong.
    """
    try:
        place = _place(seal, version, key, environment)
        root = place.parent
        if _is_whole(place, seal, version):
            with contextlib.suppress(OSError):  # It may be there to be read alone.
                os.utime(place)
            return place
        root.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        lock = _lock(place)
    except (OSError, RuntimeError, NotImplementedError) as error:  # No home; no locks.
        reason = getattr(error, "strerror", None) or error
        raise UnusableCacheError(
            f"{FOLDER}: the cache cannot be used ({reason}); set it to a folder of your own"
        ) from None
    with contextlib.ExitStack() as held:
        held.callback(lock.release)
        held.enter_context(writing(root))
        if not _is_whole(place, seal, version):
            aside = aside_of(place)
            discard(aside)
            aside.mkdir(mode=PRIVATE_FOLDER)
            try:
                build(aside)
                sync_tree(aside)
            except BaseException:
                discard(aside)
                raise
            discard(place)
            aside.rename(place)
            _tidy(root, place, environment)
    return place


def is_cached(
    seal: str,
    version: int,
    key: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
) -> bool:
    """Whether an entry is there; nothing is built.

    Args: as of `cached`.
    """
    try:
        return _is_whole(_place(seal, version, key, environment), seal, version)
    except (OSError, RuntimeError):
        return False


def _place(seal: str, version: int, key: Mapping[str, Any], environment: Mapping[str, str]) -> Path:
    """Where an entry is; a folder that several users share has one for each of them."""
    name = hashlib.sha256(json.dumps([version, key], sort_keys=True).encode()).hexdigest()[:24]
    root = cache_root(environment) / f"data-{os.getuid()}"
    return root / f"{seal.partition('.')[0]}-{name}"


class UnusableCacheError(UserError):
    """Nothing can be kept on disk."""


def _lock(place: Path) -> FileLock:
    """The lock of an entry, held."""
    lock = FileLock(place.with_name(f"{place.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info(f"another process prepares the same data in {place}; waiting for it")
        lock.acquire()
    return lock


@contextlib.contextmanager
def telling(what: str) -> Iterator[Callable[[int], None]]:
    """Says that something begins, how far it is every ten seconds, and how long it took.

    Args:
      what: is done.

    Yields:
      A function that is called with the number of examples that were done.
    """
    begun = last = time.monotonic()
    done = 0
    _log.info(what)

    def told(examples: int) -> None:
        nonlocal done, last
        done += examples
        if time.monotonic() - last > 10:
            last = time.monotonic()
            _log.info(f"{done} examples, {done / (last - begun):.0f} a second")

    yield told
    spent = max(1e-9, time.monotonic() - begun)
    _log.info(f"{done} examples in {spent:.1f} s, {done / spent:.0f} a second")


def _is_whole(place: Path, seal: str, version: int) -> bool:
    try:
        unseal(place / seal, version)
    except UnsealedError as error:
        if place.exists():
            _log.warning(f"{place}: {error}; these prepared data are built again")
        return False
    return True


def _tidy(root: Path, new: Path, environment: Mapping[str, str]) -> None:
    """Removes what killed builds left, and the entries not used for longest beyond the bound."""
    given = environment.get(BOUND, "").strip()
    left = int(given) if given.isdecimal() and given.isascii() else DEFAULT_BOUND
    for aside in root.glob(".*.writing"):
        lock = FileLock(root / f"{aside.name.removeprefix('.').removesuffix('.writing')}.lock")
        with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):
            discard(aside)
    entries: list[tuple[bool, float, Path]] = []
    for path in root.iterdir():
        with contextlib.suppress(FileNotFoundError):  # Another process removes it.
            if path.is_dir() and not path.name.startswith("."):
                entries.append((path != new, -path.stat().st_mtime, path))
    for _, _, path in sorted(entries):
        with contextlib.suppress(FileNotFoundError):
            left -= sum(file.stat().st_size for file in path.iterdir())
            if left < 0 and path != new:
                discard(path)
