"""Tensors of GGUF files block by block: as floating point, or as the codes that the file stores.

How a block of each type is laid out is ggml's `ggml-common.h`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from feddpa_jax.hf.names import row_blocks
from feddpa_jax.quantization.quantizing import Pieces, pack
from feddpa_jax.types import UserError

# Weights in a block of Q4_K.
_SUPER = 256


def float_blocks(path: Path, tensor: Any) -> Iterator[np.ndarray]:
    """A tensor's rows in float32.

    Raises:
      UserError: a type that is not supported.
    """
    from gguf.quants import dequantize

    for raw in raw_blocks(path, tensor):
        try:
            yield dequantize(raw, tensor.tensor_type)
        except NotImplementedError:
            raise UserError(
                f"{path}: tensor {tensor.name!r} is stored as {tensor.tensor_type.name}, "
                "which is not supported; use another quantization"
            ) from None


def raw_blocks(path: Path, tensor: Any) -> Iterator[np.ndarray]:
    """A tensor's rows as the file has them."""
    stored = tensor.data
    for rows in row_blocks(stored.shape):
        # Read from the file and not through the reader's map, whose pages would stay in memory.
        yield np.fromfile(
            path,
            stored.dtype,
            count=stored[rows].size,
            offset=tensor.data_offset + rows.start * stored.strides[0],
        ).reshape(stored[rows].shape)


def split_blocks(raw_XY: np.ndarray, layout: str) -> Pieces:
    """Codes and scales of some outputs, exactly those of the file.

    Args:
      raw_XY: their blocks, uint8; a block holds the weights of 32 inputs, of `q4_k` 256.
      layout: one of `STORED`.

    >>> one = np.array([[2, 60, *[0x19] * 16]], np.uint8)  # Scale 1.0 in float16, rounded up.
    >>> {name: array.shape for name, array in split_blocks(one, "q4_0").items()}
    {'codes': (1, 1, 16), 'scale': (1, 1)}
    """
    split, size = _SPLITS[layout]
    return split(np.ascontiguousarray(raw_XY).reshape(len(raw_XY), -1, size))


def _q8_0(block_XNY: np.ndarray) -> Pieces:
    return {"codes": block_XNY[..., 2:].view(np.int8), "scale": _half(block_XNY, 0)}


def _q4_0(block_XNY: np.ndarray) -> Pieces:
    return {"codes": block_XNY[..., 2:], "scale": _half(block_XNY, 0)}


def _q4_1(block_XNY: np.ndarray) -> Pieces:
    return {
        "codes": block_XNY[..., 4:],
        "scale": _half(block_XNY, 0),
        "minimum": _half(block_XNY, 2),
    }


def _q4_k(block_XNY: np.ndarray) -> Pieces:
    """Eight groups a block. Of 12 bytes with 6-bit numbers, the last 4 hold the high bits."""
    rows, blocks, _ = block_XNY.shape
    first, second, rest = (block_XNY[..., start : start + 4] for start in (4, 8, 12))
    scale = np.concatenate([first & 63, rest & 15 | (first >> 6) << 4], axis=2)
    minimum = np.concatenate([second & 63, rest >> 4 | (second >> 6) << 4], axis=2)
    # 32 bytes hold two groups, one in the low and one in the high bits.
    pair_XNPY = block_XNY[..., 16:].reshape(rows, blocks, 4, 32)
    codes = np.stack([pair_XNPY & 15, pair_XNPY >> 4], axis=3).reshape(rows, blocks * 8, 32)
    return {
        "codes": pack(codes),
        "scale": scale.reshape(rows, -1),
        "minimum": minimum.reshape(rows, -1),
        "scale_unit": _half(block_XNY, 0),
        "minimum_unit": -_half(block_XNY, 2),
    }


def _half(block_XNY: np.ndarray, start: int) -> np.ndarray:
    """The float16 at a byte of each block."""
    return np.ascontiguousarray(block_XNY[..., start : start + 2]).view("<f2")[..., 0]


_SPLITS: dict[str, tuple[Callable[[np.ndarray], Pieces], int]] = {
    "int8": (_q8_0, 34),
    "q4_0": (_q4_0, 18),
    "q4_1": (_q4_1, 20),
    "q4_k": (_q4_k, 16 + _SUPER // 2),
}
# The layout of each type of tensor that is kept as it is stored.
STORED = {"Q8_0": "int8", "Q4_0": "q4_0", "Q4_1": "q4_1", "Q4_K": "q4_k"}
