"""Checkpoints: one folder a round, written aside and renamed, with sums of every file.

- `checkpoints/00003/state.safetensors`: the arrays that all clients share.
- `checkpoints/00003/record.json`: settings, metrics, and dtype and shape of every array.
- `checkpoints/00003/manifest.json`: size and sha256 of every other file.
- `checkpoints/clients/<name>/00003.safetensors`: a client's own adapter as that round left it; the
  record of a checkpoint names size and sha256 of those that it is whole with (`client_files.py`).
"""

import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from feddpa_jax.files.disk import (
    aside_of,
    check_room,
    clear_leftovers,
    discard,
    make_folder,
    sha256,
    sync,
    sync_tree,
    to_json,
    write_new,
    writing,
)
from feddpa_jax.files.strict_json import read_object
from feddpa_jax.methods.clients import Saved
from feddpa_jax.run.client_files import ClientFiles
from feddpa_jax.run.sources import SOURCES, check_record
from feddpa_jax.types import UserError

CLIENTS = "clients"
STATE = "state.safetensors"


class Restored(NamedTuple):
    """A checkpoint: the round it was written after, the state, its record, the clients' files."""

    round_number: int
    state: dict[str, Any]
    record: dict[str, Any]
    clients: dict[str, Saved]


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
    clients: Mapping[str, Saved] | None = None,
) -> Path:
    """Writes the checkpoint of a round; it is there whole or not at all.

    Args:
      folder: holds a run's checkpoints.
      round_number: the round that has ended, from 0.
      state: dictionaries of arrays.
      record: JSON that goes with it.
      keep: how many of the last checkpoints stay, beside the one whose record has the lowest
        "loss".
      clients: the files of the clients' own adapters, which the checkpoint is whole with alone.

    Returns:
      The checkpoint's folder.

    Raises:
      UserError: it could not be written; earlier ones are untouched.
    """
    assert keep > 0
    final = folder / f"{round_number:05d}"
    aside = aside_of(final)
    try:
        make_folder(folder)
        clear_leftovers(folder)
        aside.mkdir()
        # As numpy arrays: a checkpoint knows nothing of the devices that it was written from.
        arrays = jax.tree.map(np.asarray, dict(state))
        check_room(aside, sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) + 2**16)
        # A method without a global adapter has none.
        flat: dict[str, Any] = dict(flatten_dict(arrays, sep="/"))
        write_new(aside / STATE, safetensors.numpy.save(flat))
        own = {name: list(saved) for name, saved in (clients or {}).items()}
        told = {**record, "clients_saved": own, "shapes": leaf_shapes(state)}
        write_new(aside / "record.json", to_json(told).encode())
        write_new(aside / "manifest.json", to_json(_manifest(aside)).encode())
        sync_tree(aside)
        discard(final)  # A damaged checkpoint of this round, passed over on resuming.
        aside.rename(final)
        sync(folder)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        kept = [number for number in rounds_saved(folder) if number < round_number]
        rest = f"the checkpoint of round {kept[-1]} is kept" if kept else "there is no earlier one"
        raise UserError(
            f"{final}: the checkpoint of round {round_number} could not be written ({reason}); "
            f"{rest}; make room and start the same command again"
        ) from None
    prune(folder, round_number, keep)
    return final


def prune(folder: Path, round_number: int, keep: int) -> None:
    """Removes what need not be kept after a round: older checkpoints, and what `tidy` does.

    Args:
      folder: holds a run's checkpoints.
      round_number: the last one that has ended.
      keep: as of `save`.

    Raises:
      UserError: something cannot be removed.
    """
    # Later ones are damaged (or this round would not be played again): they count for nothing.
    done = [number for number in rounds_saved(folder) if number <= round_number]
    for old in sorted(set(done[:-keep]) - {best_round(folder, done)}):
        discard(folder / f"{old:05d}")
    tidy(folder)


def tidy(folder: Path) -> None:
    """Removes what killed runs left, and clients' files that no checkpoint is whole with.

    Raises:
      UserError: something cannot be removed.
    """
    named = [_clients_of(folder / f"{number:05d}") for number in rounds_saved(folder)]
    with writing(folder):
        clear_leftovers(folder)
        if all(own is not None for own in named):  # Else it is not known what is still needed.
            used = {
                (name, saved.round_number) for own in named if own for name, saved in own.items()
            }
            ClientFiles(folder / CLIENTS, cached=0).tidy(used)


def best_round(folder: Path, rounds: Iterable[int]) -> int | None:
    """The round with the lowest loss in its record, the later of two; None where no record has one.

    A diverged round's loss is no number and is never the best.
    """
    losses = []
    for number in rounds:
        try:
            record = read_object(folder / f"{number:05d}" / "record.json", finite=False)
            losses.append((float(record["loss"]), -number))
        except (ValueError, TypeError, KeyError):
            continue
    finite = [pair for pair in losses if math.isfinite(pair[0])]
    return -min(finite)[1] if finite else None


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
        if damage and rounds_saved(folder) != rounds:  # Training goes on beside this.
            return latest(folder, expected, warn=warn)
        if damage:
            warn(f"{place}: damaged ({damage}); trying the one before it")
            continue
        return load(place, expected, warn=warn)
    if rounds:
        raise UserError(f"{folder}: every checkpoint is damaged ({damage}); use a new --run-dir")
    return None


def at_step(
    folder: Path,
    step: str,
    expected: Mapping[str, Any],
    *,
    warn: Callable[[str], None] = lambda line: None,
) -> Restored:
    """The checkpoint that a user asks for.

    Args:
      folder: holds a run's checkpoints.
      step: "best", or a round's number.
      expected: what the record must say, by key.
      warn: told what cannot be compared.

    Raises:
      UserError: there is none of that round, or it is damaged or does not match.
    """
    rounds = rounds_saved(folder)
    best = best_round(folder, rounds)
    number = best if step == "best" else int(step) if re.fullmatch("[0-9]{1,9}", step) else None
    if number is None or number not in rounds:
        there = f"there are {', '.join(map(str, rounds))} (best: {best})" if rounds else "none yet"
        raise UserError(f"--step: no checkpoint {step!r} in {folder}; {there}; or leave --step out")
    place = folder / f"{number:05d}"
    damage = find_damage(place)
    if damage:
        raise UserError(f"--step: {place} is damaged ({damage}); rerun train, or choose another")
    return load(place, expected, warn=warn)


def load(
    place: Path, expected: Mapping[str, Any], *, warn: Callable[[str], None] = lambda line: None
) -> Restored:
    """Reads one undamaged checkpoint, bit for bit.

    Args:
      place: its folder.
      expected: what the record must say, by key.
      warn: told where the record does not say from which data or adapters it is.

    Raises:
      UserError: its record differs from what is expected.
    """
    record = read_object(place / "record.json", finite=False)
    check_record(place, record, expected, warn)
    state = unflatten_dict(safetensors.numpy.load_file(place / STATE), sep="/")
    assert leaf_shapes(state) == record["shapes"]
    clients = {name: Saved(*saved) for name, saved in record["clients_saved"].items()}
    return Restored(int(place.name), state, record, clients)


def check_fits(folder: Path, expected: Mapping[str, Any]) -> None:
    """Refuses early, by what checkpoints say of themselves, what restoring one would refuse.

    Args:
      folder: holds a run's checkpoints.
      expected: what their records must say, by key.

    Raises:
      UserError: a record differs from what is expected.
    """
    found = _newest_record(folder)
    if found is not None:
        check_record(*found, expected, lambda line: None)


def knows_sources(folder: Path) -> bool:
    """Whether checkpoints know data and adapters by their content; an older version's do not."""
    found = _newest_record(folder)
    return found is not None and all(isinstance(found[1].get(key), dict) for key in SOURCES)


def _newest_record(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint with a readable record, and that record."""
    for number in reversed(rounds_saved(folder)):
        place = folder / f"{number:05d}"
        try:
            return place, read_object(place / "record.json", finite=False)
        except UserError:
            continue  # Damaged: the one before it counts.
    return None


def find_damage(place: Path) -> str:
    """What is wrong with a checkpoint's files; empty if nothing is."""
    try:
        listed = read_object(place / "manifest.json")["files"]
        files = {str(name): (int(size), str(sha)) for name, (size, sha) in listed.items()}
    except (ValueError, TypeError, AttributeError, KeyError):
        return "manifest.json is missing or unreadable"
    if not {"record.json", STATE} <= files.keys():
        return "manifest.json is not complete"
    for name, (size, digest) in files.items():
        path = place / name
        try:
            found = path.stat().st_size
            if found != size:
                return f"{name} has {found} bytes, not {size}"
            if sha256(path) != digest:
                return f"{name} has changed"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        except ValueError:  # A zero byte.
            return f"manifest.json names {name!r}"
    return _find_damaged_client(place)


def _find_damaged_client(place: Path) -> str:
    files = ClientFiles(place.parent / CLIENTS, cached=0)
    for name, (number, size, digest) in (_clients_of(place) or {}).items():
        path = files.path(name, number)
        try:
            if path.stat().st_size != size or sha256(path) != digest:
                return f"{path.relative_to(place.parent)} has changed"
        except (OSError, ValueError):
            return f"{path.relative_to(place.parent)} is missing"
    return ""


def _clients_of(place: Path) -> dict[str, Saved] | None:
    """The clients' files of a checkpoint; None where its record cannot be read."""
    try:
        found = read_object(place / "record.json", finite=False)["clients_saved"]
        return {
            str(name): Saved(int(n), int(size), str(sha)) for name, (n, size, sha) in found.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def _manifest(folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {
        path.relative_to(folder).as_posix(): (path.stat().st_size, sha256(path)) for path in files
    }
    return {"files": sums}
