"""Weights into codes and scales, on the host, a few rows at a time."""

from collections.abc import Iterable

import jax
import numpy as np
from jax.typing import DTypeLike

from feddpa_jax.quantization.layout import LAYOUTS, NF4
from feddpa_jax.quantization.quantized import Quantized
from feddpa_jax.types import UserError

# Arrays of some of a map's outputs, by their names in `Quantized`: outputs lead, as rows do in
# files. codes [rows, n, g] or [rows, n, g/2]; scale and minimum [rows, n]; units [rows, n/8].
Pieces = dict[str, np.ndarray]
# What JAX asks of memory that it takes over, in bytes.
_ALIGNMENT = 64
_BOUNDS = ((np.array(NF4[1:]) + np.array(NF4[:-1])) / 2).astype(np.float32)


def quantize(kernel_DE: np.ndarray, layout: str, dtype: DTypeLike) -> Quantized:
    """A whole map's weights.

    Args:
      kernel_DE: the weights.
      layout: "int8" or "nf4".
      dtype: of the weights once they are floating point again.

    >>> import numpy as np
    >>> quantize(np.array([[1.0], [0.3]]), "int8", "float32").codes[0, :2, 0].tolist()
    [127, 38]
    """
    pieces = quantize_rows(np.asarray(kernel_DE).T, layout)
    size_in, size_out = kernel_DE.shape
    return assemble([pieces], layout, (size_in, size_out), dtype)


def quantize_rows(rows_XD: np.ndarray, layout: str) -> Pieces:
    """Codes and scales of some outputs' weights, rounded to the nearest value.

    The scale is the group's largest weight, over 127 for `int8`, rounded to float16; codes are
    chosen with the rounded one. A group of zeros has scale 0 and is zero again.

    Args:
      rows_XD: the weights of some outputs.
      layout: "int8" or "nf4".

    Raises:
      UserError: a weight is too large for a scale in float16.
    """
    group = LAYOUTS[layout].group
    rows, size_in = rows_XD.shape
    groups = -(-size_in // group)
    weight_XNG = np.zeros((rows, groups * group), np.float32)
    weight_XNG[:, :size_in] = rows_XD
    weight_XNG = weight_XNG.reshape(rows, groups, group)
    largest_XN = np.abs(weight_XNG).max(axis=2)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scale_XN = (largest_XN / (127 if layout == "int8" else 1)).astype(np.float16)
        if np.any(np.isinf(scale_XN) & np.isfinite(largest_XN)):
            raise UserError(
                f"model.quantize: weights of up to {largest_XN.max():g} are too large for "
                f"{layout}; leave it null"
            )
        # A damaged file may hold what is no number: it stays none.
        inverse_XN = np.where(scale_XN == 0, 0, 1 / scale_XN.astype(np.float32))
        weight_XNG *= inverse_XN[:, :, None]
        if layout == "int8":
            np.clip(np.rint(weight_XNG, out=weight_XNG), -127, 127, out=weight_XNG)
            return {"codes": weight_XNG.astype(np.int8), "scale": scale_XN}
    codes_XNG = np.zeros(weight_XNG.shape, np.uint8)
    for bound in _BOUNDS:
        codes_XNG += weight_XNG > bound
    return {"codes": pack(codes_XNG), "scale": scale_XN}


def pack(codes_XNG: np.ndarray) -> np.ndarray:
    """Codes of 4 bits, two in a byte: the low bits are of a group's first half."""
    half = codes_XNG.shape[-1] // 2
    return codes_XNG[..., :half] | codes_XNG[..., half:] << 4


def assemble(
    pieces: Iterable[Pieces], layout: str, shape: tuple[int, int], dtype: DTypeLike
) -> Quantized:
    """A map from the pieces of its outputs, one after the other.

    Args:
      pieces: of consecutive outputs.
      layout: what they are laid out in.
      shape: D, E.
      dtype: of the weights once they are floating point again.
    """
    sizes = LAYOUTS[layout].shapes(shape)
    held = {name: empty(size, kind) for name, (size, kind) in sizes.items()}
    row = 0
    for piece in pieces:
        count = len(piece["codes"])
        for name, array in piece.items():
            np.moveaxis(held[name], -1, 0)[row : row + count] = array
        row += count
    assert row == shape[1]
    arrays = {name: jax.device_put(array, may_alias=True) for name, array in held.items()}
    return Quantized(**arrays, layout=layout, shape=shape, dtype=np.dtype(dtype))


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that is aligned so that JAX on a CPU takes it over without a copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
