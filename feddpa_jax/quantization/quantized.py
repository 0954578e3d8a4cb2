"""A frozen map whose weights are held in 4 or 8 bits, and made floating point where it is used."""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from feddpa_jax.quantization.layout import LAYOUTS, Layout


@flax.struct.dataclass
class Quantized:
    """A map W [D, E] in groups along D; n groups of g weights (see `layout`).

    Attributes:
      codes: [n, g, E] int8, or [n, g/2, E] uint8 with two codes in a byte.
      scale: [n, E].
      minimum: [n, E], or None.
      scale_unit: [n/8, E], or None.
      minimum_unit: likewise.
      layout: its name in `LAYOUTS`.
      shape: D, E.
      dtype: of the weights once they are floating point again, and of the products.
    """

    codes: Any
    scale: Any
    minimum: Any = None
    scale_unit: Any = None
    minimum_unit: Any = None
    layout: str = flax.struct.field(pytree_node=False, default="int8")
    shape: tuple[int, int] = flax.struct.field(pytree_node=False, default=(0, 0))
    dtype: Any = flax.struct.field(pytree_node=False, default=jnp.dtype(jnp.float32))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(self))


def zeros(layout: str, shape: tuple[int, int], dtype: DTypeLike) -> Quantized:
    """A map of zero scales, for its shapes.

    >>> zeros("nf4", (128, 3), "bfloat16").nbytes * 8 / (128 * 3)
    4.25
    """
    arrays = {n: jnp.zeros(s, d) for n, (s, d) in LAYOUTS[layout].shapes(shape).items()}
    return Quantized(**arrays, layout=layout, shape=shape, dtype=jnp.dtype(dtype))


def dequantize(weights: Quantized, after: jax.Array | None = None) -> jax.Array:
    """The weights [D, E] in their dtype: computed in float32 and rounded once.

    Args:
      weights: the map.
      after: what is multiplied with them. Compilers would otherwise compute the weights once for
        the forward and the backward pass, or before a loop that uses them, and hold all layers'.

    >>> from feddpa_jax.quantization.quantizing import quantize
    >>> import numpy as np
    >>> dequantize(quantize(np.array([[0.5], [-1.0], [0.0]]), "nf4", "float32")).tolist()
    [[0.44070982933044434], [-1.0], [0.0]]
    """
    if after is not None:
        weights = _only_after(weights, after)
    layout, (size_in, size_out) = LAYOUTS[weights.layout], weights.shape
    value_NGE = _values(weights.codes, layout)
    scale_NE = _number(weights.scale, weights.scale_unit, layout)
    found_NGE = value_NGE * scale_NE[:, None, :]
    if weights.minimum is not None:
        minimum_NE = _number(weights.minimum, weights.minimum_unit, layout)
        found_NGE = found_NGE + minimum_NE[:, None, :]
    return found_NGE.reshape(-1, size_out)[:size_in].astype(weights.dtype)


def _values(codes: jax.Array, layout: Layout) -> jax.Array:
    """The value of each code, float32."""
    if layout.packed:
        codes = jnp.concatenate([codes & 15, codes >> 4], axis=1)
    if not layout.book:
        return codes.astype(jnp.float32) + jnp.float32(layout.first)

    def gathered(codes: jax.Array) -> jax.Array:
        table = jnp.array(layout.book, jnp.float32)
        return table.at[codes].get(mode="promise_in_bounds")

    def chosen(codes: jax.Array) -> jax.Array:
        # Bit by bit: matrix devices gather single numbers far slower, and would have to spread
        # conditions on bytes over words.
        codes = codes.astype(jnp.int32)
        values: list[Any] = [jnp.float32(value) for value in layout.book]
        for bit in range(4):
            is_set = (codes & (1 << bit)) != 0
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [jnp.where(is_set, high, low) for low, high in pairs]
        return values[0]

    return jax.lax.platform_dependent(codes, cpu=gathered, default=chosen)


def _number(scale: jax.Array, unit: jax.Array | None, layout: Layout) -> jax.Array:
    """Scales or minima as numbers, float32."""
    scale_NE = scale.astype(jnp.float32)
    if unit is None:
        return scale_NE
    return scale_NE * jnp.repeat(unit.astype(jnp.float32), layout.unit, axis=0)


def _only_after(weights: Quantized, after: jax.Array) -> Quantized:
    """The same weights, for a compiler that cannot know it before it knows `after`."""

    def on_cpu(weights: Quantized, after: jax.Array) -> Quantized:
        # The compiler for CPUs drops barriers early. No square has its second bit set: a zero that
        # it does not see through.
        word = jax.lax.bitcast_convert_type(after[(0,) * after.ndim].astype(jnp.float32), jnp.int32)
        zero = (word * word) & 2
        return dataclasses.replace(weights, codes=weights.codes ^ zero.astype(weights.codes.dtype))

    def elsewhere(weights: Quantized, after: jax.Array) -> Quantized:
        return jax.lax.optimization_barrier((weights, after))[0]

    return jax.lax.platform_dependent(weights, after, cpu=on_cpu, default=elsewhere)
