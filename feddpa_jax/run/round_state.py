"""The round state in Orbax's format: what all clients share after a round.

A checkpoint's folder is an Orbax checkpoint as well: `orbax.checkpoint.v1.load(folder)` gives
`{"round": 3, "global_": {...}}` on any machine, because the arrays are saved as NumPy arrays and
know nothing of the devices that they come from. Every array is one uncompressed Zarr array, so the
same state has the same bytes: adapters hardly compress, and Orbax's usual database (OCDBT) names
its files at random.

Several processes: the state is the same on all of them. All take part in a save, because Orbax
compares paths and waits for everybody, and the first one writes. Nobody else touches the folder,
which may be on the first process's own disk, so the others restore from what the first sends them.
"""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from feddpa_jax.files.bucket import files_below, in_bucket
from feddpa_jax.types import UserError

# Earlier versions wrote all arrays into this one file.
OLD_STATE = "state.safetensors"
# What Orbax opens no folder without.
_NEEDED = ("_CHECKPOINT_METADATA", "orbax.checkpoint", "state/_METADATA")
_ROUND = "round"
# Folders whose names Orbax takes as they are.
_PLAIN = re.compile(r"[\w./ +,=@~-]+", re.ASCII)


def host_copy(state: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a state, copied to the host: the next round may reuse the device's buffers."""
    return jax.tree.map(lambda leaf: np.array(leaf), dict(state))


class Save:
    """A save under way; `wait` ends it."""

    def __init__(self, folder: Path, round_number: int, arrays: Mapping[str, Any]):
        """Begins to write; all processes call this at the same place, and with the same folder.

        Args:
          folder: the checkpoint's, which is not there yet.
          round_number: the round that has ended.
          arrays: from `host_copy`.
        """
        orbax = load_library()
        context = orbax.Context()
        context.array.saving.use_ocdbt = False
        context.array.saving.use_zarr3 = False
        context.array.saving.use_compression = False
        context.array.saving.array_metadata_store = None
        # Where this fails in the background, Orbax waits minutes for the folder before the program
        # can end; several processes end hard, and must not wait for each other here.
        context.asynchronous.create_directories_asynchronously = jax.process_count() > 1
        # The folder is not renamed by Orbax: object stores cannot, and on disks the caller does.
        context.atomicity.mode = type(context.atomicity.mode).COMMIT_FILE
        self._folder, self._elsewhere = folder, None
        if not _is_plain(folder):
            self._elsewhere = tempfile.TemporaryDirectory()
            folder = Path(self._elsewhere.name, "checkpoint")
        with context:
            self._response = orbax.save_async(
                folder, {_ROUND: np.array(round_number, np.int32), **arrays}
            )

    def wait(self) -> None:
        """Returns once everything is written.

        Raises:
          OSError: it cannot be written.
        """
        try:
            self._response.result()
        except ValueError as error:
            # What TensorStore makes of a full disk and the like.
            code = re.search(r"os_error_code='(\d+)'", str(error))
            reason = str(error).splitlines()[0].partition(" [tensorstore_spec")[0]
            reason = os.strerror(int(code[1])) if code else reason
            raise OSError(int(code[1]) if code else 0, reason) from error
        if self._elsewhere is not None:
            with self._elsewhere as made:
                shutil.copytree(Path(made, "checkpoint"), self._folder)


def _is_plain(folder: Path) -> bool:
    """Whether Orbax takes a folder's name as it is; below others it would lose its files."""
    return in_bucket(folder) or _PLAIN.fullmatch(str(folder)) is not None


def is_listed(files: Container[str]) -> bool:
    """Whether the names of a checkpoint's files include those that a state cannot do without."""
    return OLD_STATE in files or all(name in files for name in _NEEDED)


def read(folder: Path) -> dict[str, Any]:
    """The arrays of a checkpoint, bit for bit, whichever version wrote it.

    Args:
      folder: the checkpoint's. With several processes each reads its own copy (`send`).

    Raises:
      UserError: they cannot be read.
    """
    try:
        if (folder / OLD_STATE).exists():
            return _read_old(folder / OLD_STATE)
        if not _is_plain(folder):
            return receive(send(folder))
        orbax = load_library()
        context = orbax.Context()
        context.multiprocessing.active_processes = {jax.process_index()}
        context.multiprocessing.primary_host = jax.process_index()
        with context:
            state = orbax.load(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder}: cannot be read ({reason})") from error
    del state[_ROUND]
    return state


def _read_old(file: Path) -> dict[str, Any]:
    from flax.traverse_util import unflatten_dict
    from safetensors.numpy import load

    return unflatten_dict(load(file.read_bytes()), sep="/")


def send(folder: Path) -> dict[str, np.ndarray]:
    """The bytes of a checkpoint's files, by name, for processes that cannot see the folder."""
    return {
        path.relative_to(folder).as_posix(): np.frombuffer(path.read_bytes(), np.uint8)
        for path in files_below(folder)
    }


def receive(files: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The arrays of a checkpoint whose files were sent; every process calls this.

    All processes go through Orbax here, the first one too: it counts its operations, and a process
    that has counted another number than the others would wait for them in the next save for ever.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.tobytes())
        return read(Path(folder))


def load_library() -> Any:
    """Orbax, imported when it is first needed, which takes a third of a second."""
    from orbax.checkpoint import v1

    logging.getLogger("absl").addFilter(_says_something)
    return v1


def _says_something(record: logging.LogRecord) -> bool:
    """Whether a record of Orbax is neither of what is meant so nor of what is raised as well."""
    text = str(record.msg)
    return "Skipping merge of OCDBT" not in text and "_SignalingThread.run()" not in text
