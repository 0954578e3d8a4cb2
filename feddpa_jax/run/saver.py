"""Writes checkpoints in the background, one at a time.

The order on disk is what makes a run survive a kill at any moment: first the files of the clients
that a round changed, then the state, the record, and last the manifest, without which there is no
checkpoint. On disks the whole folder is written aside and renamed; in a bucket nothing can be, and
the manifest alone decides.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from feddpa_jax.devices.processes import from_first, is_first, several
from feddpa_jax.federated.clients import Saved
from feddpa_jax.files.bucket import folder_at, in_bucket
from feddpa_jax.files.disk import (
    aside_of,
    check_room,
    clear_leftovers,
    discard,
    make_folder,
    sync,
    sync_tree,
    to_json,
    write_new,
)
from feddpa_jax.run import round_state
from feddpa_jax.run.checkpoint import leaf_shapes, prune, rounds_saved, sums_of
from feddpa_jax.types import UserError

# Seconds that a save under way gets when the run has failed and other processes may be gone.
PATIENCE = 5.0


def in_background(worker: Executor, work: Callable[[], None]) -> Future[None]:
    """Hands some work to a thread that is there already: starting one waits for it to run."""
    return worker.submit(work)


def _remove(place: Path) -> None:
    """Removes what a failed save left, if that is possible; else it counts for nothing."""
    with contextlib.suppress(OSError):
        if in_bucket(place):
            discard(place)
        else:
            shutil.rmtree(place, ignore_errors=True)


class Saver:
    """Saves the rounds of a run; leaving its context waits for the last.

    With several processes each has a Saver, and all call the same methods at the same places; the
    first one writes.

    >>> import tempfile, numpy as np
    >>> folder = Path(tempfile.mkdtemp())
    >>> with Saver(folder, keep=2) as saver:
    ...     for number in range(3):
    ...         saver.save(number, {"x": np.full(2, number)}, {"validation_loss": 1.0 - number})
    >>> rounds_saved(folder)
    [1, 2]
    """

    def __init__(self, folder: Path, *, keep: int):
        """Makes a Saver.

        Args:
          folder: holds a run's checkpoints.
          keep: how many of the last checkpoints stay, beside the one whose record has the lowest
            "validation_loss".
        """
        assert keep > 0
        self._folder = folder
        self._keep = keep
        self._under_way: Future[None] | None = None
        # Both here, and not between two rounds.
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        self._worker.submit(round_state.load_library).result()

    def save(
        self,
        round_number: int,
        state: Mapping[str, Any],
        record: Mapping[str, Any],
        *,
        clients: Mapping[str, Saved] | None = None,
    ) -> None:
        """Begins to write the checkpoint of a round; it is there whole or not at all.

        Returns once the state is copied to the host: the next round may begin.

        Args:
          round_number: the round that has ended, from 0.
          state: dictionaries of arrays, the same on all processes.
          record: JSON that goes with it.
          clients: the files of the clients' own adapters, which the checkpoint is whole with alone.

        Raises:
          UserError: the one before it, or this one, could not be written; earlier ones are
            untouched.
        """
        self.wait()
        arrays = round_state.host_copy(state)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
        place = folder_at(from_first(lambda: self._prepare(round_number, size)))
        own = {name: list(saved) for name, saved in (clients or {}).items()}
        told = {**record, "clients_saved": own, "shapes": leaf_shapes(state)}
        begun = threading.Event()
        self._under_way = in_background(
            self._worker, lambda: self._write(round_number, place, arrays, told, begun)
        )
        # Orbax compares the folders of all processes on their devices, which a round's programs
        # on the same devices must not overtake on one of them.
        if several():
            begun.wait()

    def wait(self) -> None:
        """Returns once nothing is under way any more.

        Raises:
          UserError: a checkpoint could not be written; on every process.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return
        # The first one knows; where it failed, the others would wait for it in Orbax.
        from_first(under_way.result)
        under_way.result()

    def _prepare(self, round_number: int, size: int) -> str:
        """Makes room for a checkpoint, and says where it is written."""
        place = self._folder / f"{round_number:05d}"
        try:
            if in_bucket(place):
                discard(place)  # A damaged or unfinished one.
                return os.fspath(place)
            place = aside_of(place)
            make_folder(self._folder)
            clear_leftovers(self._folder)
            check_room(self._folder, size + 2**16)
        except OSError as error:
            raise self._failed(round_number, error) from None
        return str(place)

    def _write(
        self,
        round_number: int,
        place: Path,
        arrays: Mapping[str, Any],
        record: Mapping[str, Any],
        begun: threading.Event,
    ) -> None:
        try:
            try:
                save = round_state.Save(place, round_number, arrays)
            finally:
                begun.set()
            save.wait()
            if is_first():
                self._finish(round_number, place, record)
        except Exception as error:
            if is_first():
                _remove(place)
            if not isinstance(error, OSError):
                raise
            raise self._failed(round_number, error) from None
        if is_first():
            prune(self._folder, round_number, self._keep, under_way=True)

    def _finish(self, round_number: int, place: Path, record: Mapping[str, Any]) -> None:
        """Adds record and manifest to what Orbax wrote, and gives it its name."""
        final = self._folder / f"{round_number:05d}"
        write_new(place / "record.json", to_json(record).encode())
        write_new(place / "manifest.json", to_json({"files": sums_of(place)}).encode())
        if place == final:
            return
        sync_tree(place)
        discard(final)  # A damaged checkpoint of this round, passed over on resuming.
        place.rename(final)
        sync(self._folder)

    def _failed(self, round_number: int, error: OSError) -> UserError:
        reason = error.strerror or str(error)
        kept = [number for number in rounds_saved(self._folder) if number < round_number]
        rest = f"the checkpoint of round {kept[-1]} is kept" if kept else "there is no earlier one"
        return UserError(
            f"{self._folder / f'{round_number:05d}'}: the checkpoint of round {round_number} could "
            f"not be written ({reason}); {rest}; make room and start the same command again"
        )

    def __enter__(self) -> "Saver":
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for what is under way, also when the run has failed or was interrupted.

        Raises:
          UserError: a checkpoint could not be written: then what the error says of the last one
            that is kept is no longer true.
        """
        try:
            if error is None or kind is GeneratorExit:
                self.wait()
            elif self._under_way is not None and is_first():
                # Other processes may be gone, which Orbax would wait for.
                with contextlib.suppress(TimeoutError):
                    self._under_way.result(PATIENCE if several() else None)
        finally:
            self._under_way = None
            self._worker.shutdown(wait=False)
