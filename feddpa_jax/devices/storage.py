"""How values are held between the operations of a program, where memory traffic bounds them.

Compilers for accelerators fuse what lies between products, and choose themselves what is written
to memory and in which dtype: mostly float32, as it is computed. These functions make the choice.
"""

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

# The names of values that a checkpoint's policy may keep; scores are a number a pair of tokens.
HELD, SCORES = "held", "scores"


def held(x: jax.Array, dtype: DTypeLike | None = None, name: str = HELD) -> jax.Array:
    """`x`, which a policy may keep for the backward pass, rounded to `dtype` first."""
    short = x if dtype is None else x.astype(dtype)
    return checkpoint_name(short, name).astype(x.dtype)
