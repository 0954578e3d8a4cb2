"""The one matrix product of the package: operands in the model's dtype, sums in float32.

Every frozen map, adapter and attention product goes through `contract`, forward and backward, or
through `product`, where a function has a backward pass of its own.
bfloat16 operands and float32 sums are what matrix units want. On CPUs with bfloat16 instructions
float32 results are the only fast form; on accelerators, where activations between products are
bound by memory traffic, a result leaves the matrix unit in bfloat16 and is widened where it is
used. What lies between products is computed in float32 everywhere.
"""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from feddpa_jax.quantization.quantized import Quantized, dequantize


def _mergeable(spec: str) -> tuple[str, ...]:
    """The letters of an einsum in groups; those of a group only occur side by side, in its order.

    CPUs multiply matrices, and batches of them, fastest; accelerators' compilers fuse more of what
    lies before and after a product while its axes are apart.

    >>> _mergeable("BKGTH,BKSH->BKGTS")
    ('BK', 'GT', 'H', 'S')
    """
    terms = re.split("->|,", spec)
    groups: list[str] = []
    for letter in dict.fromkeys("".join(terms)):
        pair = groups[-1][-1] + letter if groups else ""
        if pair and all(pair in term or not set(pair) & set(term) for term in terms):
            groups[-1] += letter
        else:
            groups.append(letter)
    return tuple(groups)


def _merged(spec: str, x: jax.Array, y: jax.Array, **options: Any) -> jax.Array:
    """An einsum whose neighbouring axes are one where they may be."""
    groups = _mergeable(spec)
    left, right, out = re.split("->|,", spec)
    size = dict(zip(left + right, x.shape + y.shape, strict=True))
    short = spec
    for group in groups:
        short = short.replace(group, group[0])

    def flat(array: jax.Array, term: str) -> jax.Array:
        own = [group for group in groups if group in term]
        own.sort(key=term.index)
        return array.reshape([math.prod(size[letter] for letter in group) for group in own])

    flat_out = jnp.einsum(short, flat(x, left), flat(y, right), **options)
    return flat_out.reshape([size[letter] for letter in out])


def product(
    spec: str, x: jax.Array, y: jax.Array, dtype: DTypeLike, *, whole: bool = False
) -> jax.Array:
    """An einsum of operands rounded to `dtype`, float32, for functions with gradients of their own.

    On accelerators the result is rounded too, but with `whole`; CPUs merge axes (`_mergeable`).
    """
    x, y = x.astype(dtype), y.astype(dtype)
    # float32 means float32: accelerators would otherwise round the operands.
    exact = jnp.dtype(dtype) == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else None
    options = {"precision": precision, "preferred_element_type": jnp.float32}
    rounded = options if whole else {**options, "preferred_element_type": dtype}
    return jax.lax.platform_dependent(
        *(x, y),
        cpu=lambda x, y: _merged(spec, x, y, **options),
        default=lambda x, y: jnp.einsum(spec, x, y, **rounded).astype(jnp.float32),
    )


def contract(spec: str, x: jax.Array, y: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Two-operand einsum with operands rounded to `dtype` and a float32 result.

    The gradients are contractions of the same kind, so that the backward pass runs at the forward
    pass's speed. On accelerators the result and the gradient of `x` are rounded to `dtype`, that of
    `y`, which may be a trained factor, is not.

    Args:
      spec: an einsum such as "BTD,BDR->BTR"; every letter stands in two of the three terms or all.
      x: first operand.
      y: second operand.
      dtype: what both are rounded to.

    Returns:
      The product, float32.

    >>> import jax.numpy as jnp
    >>> contract("TD,DE->TE", jnp.ones((2, 3)), jnp.ones((3, 1)), jnp.bfloat16).tolist()
    [[3.0], [3.0]]
    """
    return _contract(spec, x, y, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _contract(spec: str, x: jax.Array, y: jax.Array, dtype: DTypeLike):
    return product(spec, x, y, dtype)


def _forward(spec: str, x: jax.Array, y: jax.Array, dtype: DTypeLike):
    # Residuals are rounded already: half the memory, and no second rounding in the backward pass.
    empty = (jnp.zeros((0,), x.dtype), jnp.zeros((0,), y.dtype))
    return product(spec, x, y, dtype), (x.astype(dtype), y.astype(dtype), empty)


def _backward(spec: str, dtype: DTypeLike, residuals, g: jax.Array):
    x, y, (x_like, y_like) = residuals
    terms, out = spec.split("->")
    left, right = terms.split(",")
    dx = product(f"{out},{right}->{left}", g, y, dtype)
    dy = product(f"{left},{out}->{right}", x, g, dtype, whole=True)
    return dx.astype(x_like.dtype), dy.astype(y_like.dtype)


_contract.defvjp(_forward, _backward)


def contract_frozen(
    spec: str, x: jax.Array, w: jax.Array | Quantized, dtype: DTypeLike, *, whole: bool = False
) -> jax.Array:
    """`contract` with a frozen second operand: no gradient of `w` is ever computed.

    Quantized weights are made floating point here, and again in the backward pass: between the two
    they are held in their few bits alone.

    With `whole` the result is not rounded on any device, as a loss over logits wants it.
    """
    return _contract_frozen(spec, x, w, dtype, whole)


def _plain(w: jax.Array | Quantized, after: jax.Array, dtype: DTypeLike) -> jax.Array:
    return dequantize(w, after.astype(dtype)) if isinstance(w, Quantized) else w


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def _contract_frozen(
    spec: str, x: jax.Array, w: jax.Array | Quantized, dtype: DTypeLike, whole: bool
):
    return product(spec, x, _plain(w, x, dtype), dtype, whole=whole)


def _forward_frozen(
    spec: str, x: jax.Array, w: jax.Array | Quantized, dtype: DTypeLike, whole: bool
):
    return product(spec, x, _plain(w, x, dtype), dtype, whole=whole), (w, jnp.zeros((0,), x.dtype))


def _backward_frozen(spec: str, dtype: DTypeLike, whole: bool, residuals, g: jax.Array):
    w, x_like = residuals
    terms, out = spec.split("->")
    left, right = terms.split(",")
    dx = product(f"{out},{right}->{left}", g, _plain(w, g, dtype), dtype)
    return dx.astype(x_like.dtype), None


_contract_frozen.defvjp(_forward_frozen, _backward_frozen)
