"""Checkpoints: one folder a round, with sums of every file (`run/saver.py` writes them).

- `checkpoints/00003/`: an Orbax checkpoint of the arrays that all clients share
  (`run/round_state.py`).
- `checkpoints/00003/record.json`: settings, metrics, and dtype and shape of every array.
- `checkpoints/00003/manifest.json`: size and sha256 of every other file.
- `checkpoints/clients/<name>/00003.safetensors`: a client's own adapter as that round left it; the
  record of a checkpoint names size and sha256 of those that it is whole with (`client_files.py`).
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from feddpa_jax.federated.clients import Saved
from feddpa_jax.files.bucket import files_below, in_bucket, size_of
from feddpa_jax.files.disk import clear_leftovers, discard, sha256, writing
from feddpa_jax.files.strict_json import read_object
from feddpa_jax.run import round_state
from feddpa_jax.run.client_files import ClientFiles
from feddpa_jax.run.sources import SOURCES, check_record
from feddpa_jax.types import UserError

CLIENTS = "clients"


class Restored(NamedTuple):
    """A good checkpoint that fits.

    Attributes:
      round_number: the round it was written after.
      place: its folder.
      record: what was written with it.
      clients: the clients' files.
    """

    round_number: int
    place: Path
    record: dict[str, Any]
    clients: dict[str, Saved]

    def state(self) -> dict[str, Any]:
        """Its arrays, bit for bit.

        Raises:
          UserError: they cannot be read.
        """
        state = round_state.read(self.place)
        assert leaf_shapes(state) == self.record["shapes"]
        return state


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
    there = [p for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()]
    if in_bucket(folder):  # Nothing is renamed there: one without a manifest is being written.
        there = [p for p in there if (p / "manifest.json").exists()]
    return sorted(int(p.name) for p in there)


def prune(folder: Path, round_number: int, keep: int, *, under_way: bool = False) -> None:
    """Removes what need not be kept after a round: older checkpoints, and what `tidy` does.

    Args:
      folder: holds a run's checkpoints.
      round_number: the last one that has ended.
      keep: as of `Saver`.
      under_way: whether the next round may be writing its clients' files, which are left alone.

    Raises:
      UserError: something cannot be removed.
    """
    # Later ones are damaged (or this round would not be played again): they count for nothing.
    done = [number for number in rounds_saved(folder) if number <= round_number]
    gone = sorted(set(done[:-keep]) - {best_round(folder, done)})
    unused = {file for old in gone for file in _files_of(folder, old)} if under_way else set()
    with writing(folder):
        for old in gone:
            discard(folder / f"{old:05d}")
        if under_way:
            # Looking at the folders of all clients would take longer in every round.
            for number in set(done) - set(gone):
                unused -= _files_of(folder, number)
            ClientFiles(folder / CLIENTS, cached=0).remove(unused)
    if not under_way:
        tidy(folder)


def _files_of(folder: Path, number: int) -> set[tuple[str, int]]:
    """Name and round of the clients' files that a checkpoint is whole with."""
    own = _clients_of(folder / f"{number:05d}") or {}
    return {(name, saved.round_number) for name, saved in own.items()}


def tidy(folder: Path) -> None:
    """Removes what killed runs left, and clients' files that no checkpoint is whole with.

    Args:
      folder: holds a run's checkpoints; nobody trains there.

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
    """The round with the lowest loss on held-out examples in its record, the later of two.

    None where no record has one: nothing was held out, and what the training loss says of a round
    is how well its examples are known by heart. A loss that is no number is never the best.
    """
    losses = []
    for number in rounds:
        try:
            record = read_object(folder / f"{number:05d}" / "record.json", finite=False)
            losses.append((float(record["validation_loss"]), -number))
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
      warn: called with a line for every damaged checkpoint that was skipped.

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
      step: "best" (the lowest loss on held-out examples), or a round's number.
      expected: what the record must say, by key.
      warn: told what cannot be compared.

    Raises:
      UserError: there is none of that round, or it is damaged or does not match.
    """
    rounds = rounds_saved(folder)
    best = best_round(folder, rounds)
    if step == "best" and rounds and best is None:
        raise UserError(
            f"step: no checkpoint in {folder} is the best: nothing was held out to judge rounds "
            "by; use last or a round's number, or train with --data.validation 4"
        )
    number = best if step == "best" else int(step) if re.fullmatch("[0-9]{1,9}", step) else None
    if number is None or number not in rounds:
        known = "" if best is None else f" (best: {best})"
        there = f"there are {', '.join(map(str, rounds))}{known}" if rounds else "none yet"
        raise UserError(f"step: no checkpoint {step!r} in {folder}; {there}; or leave --step out")
    place = folder / f"{number:05d}"
    damage = find_damage(place)
    if damage:
        raise UserError(f"step: {place} is damaged ({damage}); rerun train, or choose another")
    return load(place, expected, warn=warn)


def load(
    place: Path, expected: Mapping[str, Any], *, warn: Callable[[str], None] = lambda line: None
) -> Restored:
    """An undamaged checkpoint, if it fits.

    Args:
      place: its folder.
      expected: what the record must say, by key.
      warn: told where the record does not say from which data or adapters it is.

    Raises:
      UserError: its record differs from what is expected.
    """
    record = read_object(place / "record.json", finite=False)
    check_record(place, record, expected, warn)
    clients = {name: Saved(*saved) for name, saved in record["clients_saved"].items()}
    return Restored(int(place.name), place, record, clients)


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
    # A run without code of the user's own has no digest of it.
    known = SOURCES.keys() - {"code"}
    return found is not None and all(isinstance(found[1].get(key), dict) for key in known)


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
    if "record.json" not in files or not round_state.is_listed(files):
        return "manifest.json is not complete"
    for name, (size, digest) in files.items():
        path = place / name
        try:
            found = size_of(path)
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
        path = files.there(name, number)
        try:
            if size_of(path) != size or sha256(path) != digest:
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


def sums_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of every file below a folder, by name."""
    return {
        path.relative_to(folder).as_posix(): (size_of(path), sha256(path))
        for path in files_below(folder)
    }
