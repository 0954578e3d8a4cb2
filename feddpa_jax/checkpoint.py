"""Checkpoints: one folder a round, written aside and renamed, with sums of every file.

    checkpoints/00003/state/          Orbax
    checkpoints/00003/record.json     settings, shapes, metrics
    checkpoints/00003/manifest.json   sha256 and size of every other file
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from feddpa_jax.types import UserError

_ASIDE = ".writing-"


class Restored(NamedTuple):
    """A checkpoint: the round it was written after, the state, and its record."""

    round_number: int
    state: dict[str, Any]
    record: dict[str, Any]


def leaf_shapes(state: Any) -> dict[str, list[Any]]:
    """{path: [dtype, *shape]} of every array in a tree."""
    return {
        jax.tree_util.keystr(path): [str(leaf.dtype), *leaf.shape]
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def rounds_saved(folder: Path) -> list[int]:
    """The rounds that have a checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdecimal())


def save(
    folder: Path,
    round_number: int,
    state: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    keep: int,
) -> Path:
    """Writes the checkpoint of a round; it is there whole or not at all.

    Args:
      folder: holds a run's checkpoints.
      round_number: the round that has ended, from 0.
      state: dictionaries of arrays.
      record: JSON that goes with it.
      keep: how many of the last checkpoints stay.

    Returns:
      The checkpoint's folder.

    Raises:
      UserError: it could not be written; earlier ones are untouched.
    """
    aside = folder / f"{_ASIDE}{round_number:05d}"
    final = folder / f"{round_number:05d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(leftover)
        aside.mkdir()
        # As numpy arrays: a checkpoint knows nothing of the devices that it was written from.
        with _quiet():
            ocp.save(aside / "state", jax.tree.map(np.asarray, dict(state)))
        _write_json(aside / "record.json", {**record, "shapes": leaf_shapes(state)})
        _write_json(aside / "manifest.json", _manifest(aside))
        _sync_tree(aside)
        if final.exists():  # A damaged checkpoint of this round, passed over on resuming.
            shutil.rmtree(final)
        aside.rename(final)
        _sync(folder)
    except Exception as error:  # Orbax wraps a full disk in errors of its own kinds.
        shutil.rmtree(aside, ignore_errors=True)
        if not _is_disk_error(error):
            raise
        kept = rounds_saved(folder)
        rest = f"the checkpoint of round {kept[-1]} is kept" if kept else "there is none yet"
        raise UserError(
            f"{final}: the checkpoint could not be written ({_reason(error)}); {rest}; "
            "make room and start the same command again"
        ) from None
    for old in rounds_saved(folder)[:-keep]:
        shutil.rmtree(folder / f"{old:05d}")
    return final


def latest(
    folder: Path, expected: Mapping[str, Any], *, warn: Callable[[str], None] = lambda line: None
) -> Restored | None:
    """The last good checkpoint.

    Args:
      folder: holds a run's checkpoints.
      expected: what the record must say, by key.
      warn: told of every damaged checkpoint that was passed over.

    Returns:
      The checkpoint, or None if there is none at all.

    Raises:
      UserError: all are damaged, or the last good one does not match.
    """
    rounds = rounds_saved(folder)
    damage = ""
    for number in reversed(rounds):
        place = folder / f"{number:05d}"
        damage = find_damage(place)
        if damage:
            warn(f"{place}: damaged ({damage}); trying the one before it")
            continue
        return load(place, expected)
    if rounds:
        raise UserError(f"{folder}: every checkpoint is damaged ({damage}); use a new --run-dir")
    return None


def load(place: Path, expected: Mapping[str, Any]) -> Restored:
    """Reads one undamaged checkpoint, bit for bit.

    Raises:
      UserError: its record differs from what is expected.
    """
    record = json.loads((place / "record.json").read_text())
    for key, value in expected.items():
        found = record.get(key)
        if found != json.loads(json.dumps(value)):
            raise UserError(
                f"{place}: does not fit: its {key} is {found}, this run's is {value}; "
                "use the run's own configuration, or a new --run-dir"
            )
    with _quiet():
        state = ocp.load(place / "state")
    assert isinstance(state, dict)
    assert leaf_shapes(state) == record["shapes"]
    return Restored(int(place.name), state, record)


def find_damage(place: Path) -> str:
    """What is wrong with a checkpoint's files; empty if nothing is."""
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return "manifest.json is missing or unreadable"
    for name, (size, digest) in files.items():
        path = place / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if _sha256(path) != digest:
            return f"{name} has changed"
    return ""


def _manifest(folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "files": {
            str(path.relative_to(folder)): [path.stat().st_size, _sha256(path)] for path in files
        }
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        _sync(path)


def _is_disk_error(error: BaseException) -> bool:
    text = str(error).lower()
    signs = ("no space left", "file too large", "disk quota", "resource_exhausted", "read-only")
    return isinstance(error, OSError) or any(sign in text for sign in signs)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    for sign in ("No space left on device", "File too large", "Disk quota exceeded"):
        if sign.lower() in text.lower():
            return sign
    return " ".join(text.split())[:160]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs a traceback for every error that it raises as well; one of the two is enough."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
