"""Saves full models as folders that `transformers.AutoModelForCausalLM` loads."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from feddpa_jax.hf.family import FAMILIES
from feddpa_jax.hf.load import Base
from feddpa_jax.hf.names import file_name
from feddpa_jax.hf.saved_config import saved_config
from feddpa_jax.hf.tensors import read_json, write_tensors
from feddpa_jax.quantization.quantized import Quantized, dequantize

# Copied unchanged from the base's folder, if it has them.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
SHARD_BYTES = 5_000_000_000

# As training computes it: as a program of its own the last bit could be another.
_dequantize = jax.jit(dequantize)

# What a parameter is saved as, from its path and the base's array.
Change = Callable[[str, jax.Array], jax.Array]


def parameters_of(base: Base, change: Change) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter by path, changed, one at a time; what was quantized is floating point."""
    for path, leaf in base.model.parameters().items():
        plain = _dequantize(leaf) if isinstance(leaf, Quantized) else leaf
        yield path, np.asarray(change(path, plain))


def save_model(
    folder: Path,
    base: Base,
    change: Change,
    *,
    private: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the base with some parameters changed: weights, configurations, tokenizer.

    Kernels are in the dtype that the base was loaded in, norms in float32; quantized maps are
    written as the floating-point weights that training computed with. No more than a shard is held
    in memory.

    Args:
      folder: made if need be.
      base: the base model.
      change: what to save of each parameter.
      private: whether the weights are for their owner alone (mode 0600).
      shard_bytes: most bytes of a safetensors file, unless a single tensor is larger.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, base, change, shard_bytes, private)
    base.tokenizer.save(folder)
    config = saved_config(base.hf_config, base.model.config, str(base.model.dtype))
    ids = _special_ids(base)
    _write_json(folder / "config.json", {**config, **ids})
    _write_json(folder / "generation_config.json", ids)
    if base.folder is not None:
        for name in _COPIED:
            if (base.folder / name).is_file():
                shutil.copyfile(base.folder / name, folder / name)
        _without_own_code(folder / "tokenizer_config.json")
        _stop_where_training_does(folder / "generation_config.json", base.tokenizer.eos_id)


def _without_own_code(file: Path) -> None:
    """A tokenizer's settings without what names files that stay behind, or places of others."""
    settings = read_json(file)
    gone = {"auto_map", "name_or_path"} & settings.keys()
    if gone:
        if "auto_map" in gone:
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        _write_json(file, {name: value for name, value in settings.items() if name not in gone})


def _stop_where_training_does(file: Path, eos_id: int) -> None:
    settings = read_json(file)
    ends = _with_end(settings.get("eos_token_id"), eos_id)
    if ends != settings.get("eos_token_id"):
        _write_json(file, {**settings, "eos_token_id": ends})


def _with_end(named: int | list[int] | None, eos_id: int) -> int | list[int]:
    """The end tokens that a file names, and the tokenizer's, which ends every trained answer.

    >>> _with_end(2, 2), _with_end([2, 3], 7), _with_end(None, 7)
    (2, [2, 3, 7], 7)
    """
    if named is None:
        return eos_id
    ends = named if isinstance(named, list) else [named]
    return named if eos_id in ends else [*ends, eos_id]


def _special_ids(base: Base) -> dict[str, Any]:
    """What the base's own config.json says, lists too; else what its tokenizer has."""
    tokens = base.tokenizer
    ids = {
        "bos_token_id": tokens.bos_id,
        "eos_token_id": tokens.eos_id if len(tokens.stop_ids) == 1 else list(tokens.stop_ids),
        "pad_token_id": tokens.pad_id,
    }
    declared = {name: base.hf_config.get(name) for name in ids}
    chosen = {name: ids[name] if found is None else found for name, found in declared.items()}
    return {**chosen, "eos_token_id": _with_end(chosen["eos_token_id"], tokens.eos_id)}


def _write_weights(
    folder: Path, base: Base, change: Change, shard_bytes: int, private: bool
) -> None:
    table = FAMILIES[base.model.config.family].names
    shards = _plan(base, shard_bytes)
    number = {path: index for index, paths in enumerate(shards) for path in paths}
    weight_map: dict[str, str] = {}
    held: dict[str, np.ndarray] = {}
    size = 0
    for path, array in parameters_of(base, change):
        name, transpose = file_name(path, table)
        held[name] = array.T if transpose else array
        size += array.nbytes
        index = number[path]
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        weight_map[name] = file
        if path == shards[index][-1]:
            write_tensors(folder / file, held, private=private)
            held = {}
    if len(shards) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _plan(base: Base, shard_bytes: int) -> list[list[str]]:
    """The paths of each shard, in the order in which parameters come."""
    shards: list[list[str]] = [[]]
    used = 0
    for path, leaf in base.model.parameters().items():
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(path)
        used += size
    return shards


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
