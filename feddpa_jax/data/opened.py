"""Large data are read once into a cache of Arrow files, and opened from there.

What is in the cache goes with names, sizes and times of the files that it was made of: changed data
are read anew. A run has mapped its own copy, which stays as it is while data change.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from feddpa_jax.data.client_folders import (
    FOLDER,
    client_folders,
    client_places,
    refuse_beside_clients,
)
from feddpa_jax.data.data_cache import UnusableCacheError, cached, is_cached, telling
from feddpa_jax.data.hub import read_splits, user_path
from feddpa_jax.data.population import (
    SEAL,
    VERSION,
    Population,
    is_population,
)
from feddpa_jax.data.population_writer import fill
from feddpa_jax.data.tables import KINDS
from feddpa_jax.types import Example, UserError

Cache = Literal["auto", "on", "off"]
# Data are large from so many bytes of training files, records in them, or clients' folders. A text
# has more bytes for each record than `_SHORTEST`.
LARGE_FILE, MANY_RECORDS, MANY_CLIENTS = 64 * 2**20, 50_000, 4096
_SHORTEST = 20
_DATA = (".parquet", ".jsonl", ".csv", ".tsv", ".arrow", ".gz", ".zip", ".zst")

_log = logging.getLogger(__name__)


def open_population(
    path: str, cache: Cache = "auto", columns: Mapping[str, str] | None = None
) -> Population | None:
    """The clients of a path, opened; None where the data are to be loaded into memory.

    Args:
      path: as of `load_federation`: a folder that `write_population` wrote, a folder of clients'
        folders, or "hf:FILE?..." of one JSON, CSV or Parquet file, or of a folder with
        `train.parquet`, as partitions are written.
      cache: "off": no others than the first; "auto": large ones.
      columns: the data's name of a column by ours (`data.columns`).

    Raises:
      UserError: anything wrong with the data.
    """
    if not path.startswith("hf:") and is_population(user_path(path)):
        if columns:
            raise UserError(
                f"data.columns: {path} holds a population, whose columns have our names; leave it "
                "out"
            )
        return Population(user_path(path))
    files = None if cache == "off" else _files(path, only_large=cache == "auto")
    if files is None:
        if cache == "on":
            _log.info(f"data.cache: {path} is loaded into memory; it is none of what can be opened")
        return None

    def build(folder: Path) -> None:
        examples, tests = _read(path, columns)
        with telling(f"{path}: read into the cache, once") as told:
            fill(folder, examples, tests, told=told)
        if _files(path, only_large=False) != files:
            raise UserError(f"data.path: {path}: changed while it was read; start again")

    try:
        key = _key(files, path, columns)
        return Population(cached(SEAL, VERSION, key, build), cached=True)
    except UnusableCacheError as error:
        if cache == "on":
            raise
        _log.warning(f"{error}: the data are loaded into memory")
        return None


def uncached(path: str, cache: Cache, columns: Mapping[str, str] | None) -> Path | None:
    """The file of training records, or folder of clients, that would now be read into the cache.

    Args: as of `open_population`.

    Returns:
      None if there is none.
    """
    if cache == "off" or (not path.startswith("hf:") and is_population(user_path(path))):
        return None
    files = _files(path, only_large=cache == "auto")
    if files is None or is_cached(SEAL, VERSION, _key(files, path, columns)):
        return None
    return Path(files[0][0])


def _key(files: list[list[Any]], path: str, columns: Mapping[str, str] | None) -> dict[str, Any]:
    """What an entry of the cache depends on."""
    return {"files": files, "query": path.partition("?")[2], "columns": dict(columns or {})}


def _files(path: str, *, only_large: bool) -> list[list[Any]] | None:
    """Names, sizes and times of the files of a path, none of which is read.

    None where they are not such files, or fewer or smaller than what `only_large` asks for.
    """
    if path.startswith("hf:"):
        place = user_path(path.removeprefix("hf:").partition("?")[0])
        parts = [place] if place.is_file() else _parquet_splits(place)
        entries = [_entry(file, file.resolve().as_posix()) for file in parts]
        if not entries or (only_large and not _are_large([(parts[0], entries[0][1])])):
            return None
        return entries
    folder = user_path(path)
    if not (folder / FOLDER).is_dir():
        return None
    places = client_places(folder / FOLDER)
    found = [[folder.resolve().as_posix(), 0, 0]]
    for place in (folder, folder / FOLDER, *places):
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            name = Path(entry.path).relative_to(folder).as_posix()
            found.append([name, 0, 0] if entry.is_dir() else _entry(Path(entry.path), name))
    if only_large and len(places) < MANY_CLIENTS:
        training = [(folder / name, size) for name, size, _ in found if _is_training(name)]
        return found if _are_large(training) else None
    return found


def _is_training(name: str) -> bool:
    """Whether a file's name is that of a client's training examples."""
    return Path(name).stem == "train" and Path(name).suffix in KINDS


def _are_large(files: Sequence[tuple[Path, int]]) -> bool:
    """Whether files, given with their bytes, have so many bytes or records that they are opened."""
    if sum(size for _, size in files) >= LARGE_FILE:
        return True
    tables = [file for file, _ in files if file.suffix.lower() == ".parquet"]
    texts = {file: size for file, size in files if file not in tables}
    # Few bytes are not looked through.
    looked = texts if sum(texts.values()) >= MANY_RECORDS * _SHORTEST else ()
    return sum(map(_records, [*tables, *looked])) >= MANY_RECORDS


def _records(file: Path) -> int:
    """How many records a file seems to have, or lines; at least 0. What is wrong is said later."""
    import pyarrow
    from pyarrow import parquet

    try:
        if file.suffix.lower() == ".parquet":
            return parquet.read_metadata(file).num_rows
        with file.open("rb") as lines:
            return sum(part.count(b"\n") for part in iter(lambda: lines.read(2**20), b""))
    except (OSError, pyarrow.ArrowException):
        return 0


def _parquet_splits(folder: Path) -> list[Path]:
    """`train.parquet` and `test.parquet` of a folder without other data; else nothing."""
    if not folder.is_dir():
        return []
    names = {path.name for path in folder.iterdir()}
    other = {name for name in names if name.endswith(_DATA)} - {"train.parquet", "test.parquet"}
    if "train.parquet" not in names or other or names & {"dataset_dict.json", "state.json"}:
        return []
    return [folder / name for name in ("train.parquet", "test.parquet") if name in names]


def _entry(file: Path, name: str) -> list[Any]:
    try:
        about = file.stat()
    except OSError:  # What is wrong is said when it is read.
        return [name, -1, -1]
    return [name, about.st_size, about.st_mtime_ns]


def _read(
    path: str, columns: Mapping[str, str] | None
) -> tuple[Iterable[tuple[str, Example]], Iterable[Example]]:
    """Training examples with their clients, and test instances, which are asked for afterwards."""
    if path.startswith("hf:"):
        splits = read_splits(path, columns, streamed=True)
        return splits.training(), splits.tests()
    tests: list[Example] = []
    refuse_beside_clients(user_path(path), ("test", "local"), all_lines=False)

    def examples() -> Iterator[tuple[str, Example]]:
        for client, own in client_folders(user_path(path) / FOLDER, columns):
            tests.extend(own)
            for example in client.train:
                yield client.name, example

    return examples(), _after(tests)


def _after(examples: list[Example]) -> Iterator[Example]:
    """What a list holds by the time that it is asked for."""
    yield from examples
