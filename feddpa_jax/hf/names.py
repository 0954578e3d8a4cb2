"""Parameter names: one table a family, from the file's names to our dotted paths.

A row is (regular expression, our path, whether the file's matrix is [out, in] and ours [in, out]).
A row without a path is for tensors that old checkpoints store and nobody needs.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from feddpa_jax.types import UserError

Table = tuple[tuple[str, str | None, bool], ...]
# What takes a tensor: (our path, our shape, its consecutive blocks of rows in the file, transpose).
Place = Callable[[str, tuple[int, ...], Iterable[np.ndarray], bool], Any]

_BLOCK_ELEMENTS = 1 << 20

# Files of the bare decoder (`LlamaModel`) have no "model." before their names.
LLAMA: Table = (
    (r"(?:model\.)?embed_tokens\.weight", "embed.embedding", False),
    (r"(?:model\.)?norm\.weight", "norm.scale", False),
    (r"lm_head\.weight", "lm_head.kernel", True),
    (
        r"(?:model\.)?layers\.(\d+)\.input_layernorm\.weight",
        r"layers.\1.attention_norm.scale",
        False,
    ),
    (
        r"(?:model\.)?layers\.(\d+)\.post_attention_layernorm\.weight",
        r"layers.\1.mlp_norm.scale",
        False,
    ),
    (
        r"(?:model\.)?layers\.(\d+)\.self_attn\.([qkvo]_proj)\.weight",
        r"layers.\1.attention.\2.kernel",
        True,
    ),
    (
        r"(?:model\.)?layers\.(\d+)\.mlp\.((?:gate|up|down)_proj)\.weight",
        r"layers.\1.mlp.\2.kernel",
        True,
    ),
    (r"(?:model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq", None, False),
)

LLAMA_GGUF: Table = (
    (r"token_embd\.weight", "embed.embedding", False),
    (r"output_norm\.weight", "norm.scale", False),
    (r"output\.weight", "lm_head.kernel", True),
    (r"blk\.(\d+)\.attn_norm\.weight", r"layers.\1.attention_norm.scale", False),
    (r"blk\.(\d+)\.ffn_norm\.weight", r"layers.\1.mlp_norm.scale", False),
    (r"blk\.(\d+)\.attn_([qkv])\.weight", r"layers.\1.attention.\2_proj.kernel", True),
    (r"blk\.(\d+)\.attn_output\.weight", r"layers.\1.attention.o_proj.kernel", True),
    (r"blk\.(\d+)\.ffn_(gate|up|down)\.weight", r"layers.\1.mlp.\2_proj.kernel", True),
)


def map_names(
    names: Iterable[str], shapes: Mapping[str, tuple[int, ...]], table: Table, source: str
) -> dict[str, tuple[str, bool]]:
    """Finds our path for every name in a file.

    Args:
      names: the file's tensor names.
      shapes: our paths and their shapes.
      table: the family's table.
      source: the file, for messages.

    Returns:
      {name: (our path, transpose)}, the largest first: what stands twice while it is converted then
      stands beside little else. A tied model's spare head is left out.

    Raises:
      UserError: a tensor that we do not know, one that is missing, or one that is there twice.
    """
    found: dict[str, str] = {}
    mapped: dict[str, tuple[str, bool]] = {}
    for name in names:
        path, transpose = _lookup(name, table, source)
        if path is None or (path == "lm_head.kernel" and path not in shapes):
            continue  # A tied model may store its embedding a second time.
        if path not in shapes:
            raise UserError(f"{source}: tensor {name!r} ({path}) has no place in the configuration")
        if path in found:
            raise UserError(f"{source}: {path} is set twice, by {found[path]!r} and {name!r}")
        found[path] = name
        mapped[name] = (path, transpose)
    missing = sorted(set(shapes) - set(found))
    if missing:
        raise UserError(f"{source}: no tensor for {missing[0]} ({len(missing)} missing in all)")
    return dict(sorted(mapped.items(), key=lambda item: -math.prod(shapes[item[1][0]])))


def _lookup(name: str, table: Table, source: str) -> tuple[str | None, bool]:
    for pattern, path, transpose in table:
        match = re.fullmatch(pattern, name)
        if match:
            return path and match.expand(path), transpose
    raise UserError(
        f"{source}: unknown tensor {name!r}; the model has parts that are not supported"
    )


def check_shape(
    name: str, found: tuple[int, ...], path: str, expected: tuple[int, ...], source: str
) -> None:
    """Refuses a tensor whose shape, as the file has it, is not the configuration's."""
    if found != expected:
        raise UserError(
            f"{source}: tensor {name!r} ({path}) has shape {list(found)}, "
            f"the configuration needs {list(expected)}"
        )


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of a tensor in pieces of about a million elements, in which files are read.

    >>> list(row_blocks((3, 1 << 19)))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    step = max(1, _BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
