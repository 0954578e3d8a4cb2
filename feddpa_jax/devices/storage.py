"""How values are held between the operations of a program, where memory traffic bounds them.

Compilers for accelerators fuse what lies between products, and choose themselves what is written
to memory and in which dtype: mostly float32, as it is computed. These functions make the choice.
"""

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

# The name of values that a checkpoint's policy may keep.
HELD = "held"


def held(x: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """`x`, which a policy may keep for the backward pass, rounded to `dtype` first."""
    short = x if dtype is None else x.astype(dtype)
    return checkpoint_name(short, HELD).astype(x.dtype)
