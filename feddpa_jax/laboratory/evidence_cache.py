"""Computed parts on disk, each of them kept only for the run, model, data and code it is from."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from feddpa_jax.files.bucket import in_bucket
from feddpa_jax.files.disk import (
    clear_leftovers,
    discard,
    make_folder,
    sha256,
    to_json,
    write_through,
    write_whole,
    writing,
)
from feddpa_jax.files.strict_json import read_object
from feddpa_jax.hf.tensors import opened
from feddpa_jax.types import UserError

Part = dict[str, np.ndarray]
# What parts consist of, as safetensors calls it.
_TYPES = {"F64": np.float64, "F32": np.float32, "BOOL": np.bool_, "I64": np.int64, "I32": np.int32}


class MemoryParts:
    """Parts that are computed when they are asked for, and written nowhere."""

    def part(self, name: str, compute: Callable[[], Part]) -> Part:
        """The part of that name."""
        return compute()


def read_tensors(path: Path) -> Part:
    """The arrays of a safetensors file, mapped: a page of them is in memory while it is used.

    Args:
      path: a file in a bucket, which cannot be mapped, is read as a whole.
    """
    if in_bucket(path):
        with opened(path) as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    found = {}
    for name, about in header.items():
        if name != "__metadata__":
            shape, kind = tuple(about["shape"]), _TYPES[about["dtype"]]
            place = 8 + length + about["data_offsets"][0]
            # An empty array has no page.
            found[name] = (
                np.asarray(np.memmap(path, kind, "r", place, shape))
                if math.prod(shape)
                else np.zeros(shape, kind)
            )
    return found


@dataclasses.dataclass(frozen=True)
class Cache:
    """A folder of parts.

    Attributes:
      folder: `identity.json`, `parts.json` with each part's digest, and a safetensors file a part.
      identity: what the parts depend on, by name.
    """

    folder: Path
    identity: Mapping[str, str]

    def open(self, *, fresh: bool) -> None:
        """Makes the folder, or checks that what is there is of the same identity.

        Args:
          fresh: remove what is there.

        Raises:
          UserError: it is of another identity, damaged, or cannot be written.
        """
        file = self.folder / "identity.json"
        with writing(self.folder):
            if fresh:
                discard(self.folder)
            make_folder(self.folder)
            clear_leftovers(self.folder)
            if not file.exists():
                if any(self.folder.iterdir()):
                    raise UserError(
                        f"{file}: is missing, so nothing tells what the evidence there is from; "
                        "compute it again with --fresh"
                    )
                write_whole(file, to_json(self.identity))
        found = self._read("identity.json")
        changed = [name for name in self.identity if found.get(name) != self.identity[name]]
        if changed:
            *first, last = changed
            names = f"{', '.join(first)} and {last}" if first else last
            raise UserError(
                f"{self.folder}: {names} changed since the evidence there was computed; compute it "
                "again with --fresh"
            )

    def holds(self, names: Iterable[str]) -> bool:
        """Whether all of these parts are there."""
        return set(names) <= self._digests().keys()

    def part(self, name: str, compute: Callable[[], Part]) -> Part:
        """The part of that name, from disk or computed and written: read as it is used.

        Raises:
          UserError: its file is damaged, or cannot be written.
        """
        path = self.folder / f"{name}.safetensors"
        digests = self._digests()
        if name in digests:
            if not path.is_file() or sha256(path) != digests[name]:
                raise UserError(f"{path}: is missing or damaged; compute it again with --fresh")
            return read_tensors(path)
        computed = compute()
        try:
            with writing(path):
                self._write(path, computed, digests)
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be written ({error}); make room") from None
        return read_tensors(path)

    def _write(self, path: Path, computed: Part, digests: Mapping[str, str]) -> None:
        from safetensors.numpy import save_file

        arrays = {key: np.ascontiguousarray(value) for key, value in computed.items()}
        write_through(path, lambda aside: save_file(arrays, aside))
        write_whole(self.folder / "parts.json", to_json({**digests, path.stem: sha256(path)}))

    def _digests(self) -> dict[str, str]:
        return self._read("parts.json") if (self.folder / "parts.json").exists() else {}

    def _read(self, name: str) -> dict[str, str]:
        try:
            return read_object(self.folder / name)
        except UserError:
            raise UserError(
                f"{self.folder / name}: is damaged; compute it again with --fresh"
            ) from None
