"""Safetensors and JSON in model and adapter folders, read block by block and written in shards."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from feddpa_jax.files.problems import reason
from feddpa_jax.files.strict_json import read_object
from feddpa_jax.hf.names import row_blocks
from feddpa_jax.types import UserError

_STORED = ("F32", "BF16", "F16")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder and not a file; get the file again")
    if not path.is_file():
        raise UserError(f"{path.parent}: no {path.name}; name another folder")
    return read_object(path)


def files_of_tensors(folder: Path) -> dict[str, Path]:
    """Which file of a model folder holds each tensor.

    As in `transformers`, a `model.safetensors` comes before an index beside it, and of the shards
    that an index names, all tensors count.

    Raises:
      UserError: there is none; the index is damaged, names what is not there, or two shards have a
        tensor of one name.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return dict.fromkeys(names_of_tensors(single), single)
    if not index.is_file():
        raise UserError(
            f"{folder}: no model.safetensors and no {index.name}; save the model as safetensors"
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: no weight_map; get the file again")
    files: dict[str, Path] = {}
    for shard in sorted({_shard(index, name, file) for name, file in weight_map.items()}):
        for name in names_of_tensors(folder / shard):
            if name in files:
                raise UserError(
                    f"{folder}: {files[name].name} and {shard} both hold tensor {name!r}; "
                    "get the shards again"
                )
            files[name] = folder / shard
    for name, file in weight_map.items():
        if files.get(name) != folder / file:
            raise UserError(f"{folder / file}: no tensor {name!r}, which the index puts there")
    return files


def _shard(index: Path, name: str, file: Any) -> str:
    # Names from files never leave the folder.
    if not isinstance(file, str) or Path(file).name != file or "\0" in file:
        raise UserError(f"{index}: {name!r} is in {file!r}, which is no file of the folder")
    try:
        found = (index.parent / file).is_file()
    except OSError:  # A name that is too long.
        found = False
    if not found:
        raise UserError(f"{index}: names shard {file!r}, which is missing; get the shard")
    return file


def names_of_tensors(file: Path) -> list[str]:
    """The names of a safetensors file's tensors.

    Raises:
      UserError: it cannot be read.
    """
    with opened(file) as tensors:
        return list(tensors.keys())


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file, to read from.

    Raises:
      UserError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: damaged or cut short ({reason(error)}); get the file again"
        ) from None


def stored_shape(file: Path, name: str) -> tuple[int, ...]:
    """The shape of a tensor in a file.

    Raises:
      UserError: it is not there, or of a dtype other than float32, bfloat16 and float16.
    """
    with opened(file) as tensors:
        if name not in set(tensors.keys()):
            raise UserError(f"{file}: no tensor {name!r}, which the index puts there")
        tensor = tensors.get_slice(name)
        dtype, shape = tensor.get_dtype(), tuple(tensor.get_shape())
    if dtype not in _STORED:
        raise UserError(
            f"{file}: tensor {name!r} has dtype {dtype}; supported: {', '.join(_STORED)}"
        )
    return shape


def stored_blocks(file: Path, name: str) -> Iterator[np.ndarray]:
    """A tensor's rows, block by block."""
    shape = stored_shape(file, name)
    for rows in row_blocks(shape):
        # Opened anew every time: the pages that were read stay in memory until it is closed.
        with opened(file) as tensors:
            block = tensors.get_slice(name)[rows]
        yield block


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], *, private: bool = False) -> None:
    """Writes a safetensors file that `transformers` and `peft` load.

    Args:
      path: the file.
      tensors: by name.
      private: whether it is for its owner alone (mode 0600), not for whom the umask lets read.
    """
    from safetensors.numpy import save_file

    path.unlink(missing_ok=True)
    # `save_file` puts a file of mode 0600 in the place of this one, which has the umask's.
    path.touch()
    mode = path.stat().st_mode
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
    path.chmod(0o600 if private else mode)
