"""Checkpoints of small arrays of every dtype in use."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

IDENTITY = {"rank": 8, "alpha": 16.0, "targets": ["q_proj", "v_proj"], "clients": ["anna", "ben"]}


def tree(value: int = 0) -> dict[str, Any]:
    """Small arrays of every dtype in use, with the bit patterns that a conversion would lose."""
    odd = np.array([0x7FC00123, 0xFF800001, 0x80000000, 0x00000001], np.uint32)
    half = np.arange(2**16 - 300, 2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    return {
        "global_": {
            "q_proj": {"a": odd.view(np.float32), "b": jnp.full((2, 3), value, jnp.float32)}
        },
        "local_C": {"q_proj": {"a": half.reshape(3, 100), "b": np.array([-(2**31), 7], np.int32)}},
    }


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees have the same structure, dtypes, shapes and bits."""
    same = jax.tree.map(
        lambda x, y: (
            (x.dtype, x.shape, np.asarray(x).tobytes())
            == (y.dtype, y.shape, np.asarray(y).tobytes())
        ),
        a,
        b,
    )
    return jax.tree.all(same)
