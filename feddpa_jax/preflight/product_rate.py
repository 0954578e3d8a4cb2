"""How fast this machine's device computes a product of a model's sizes: a bound on any training."""

import time

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from feddpa_jax.devices.contraction import contract
from feddpa_jax.models.model_config import ModelConfig

# Most FLOPs of the product that is timed: a second, or a few, on a slow CPU.
_MOST_FLOPS = 1e10
_REPEATS = 3


def product_rate(config: ModelConfig, dtype: DTypeLike, tokens: int) -> float:
    """FLOPs per second of the MLP's product [T, D] x [D, F] on the first device.

    Nothing that trains the model is faster: most of its FLOPs are in such products, and
    attention, losses, adapters and optimizers take time besides.

    Args:
      config: the model's sizes.
      dtype: of its products.
      tokens: T of a block; fewer are timed where that would take long.
    """
    flops = 2 * config.width * config.ffn
    rows = max(1, min(tokens, int(_MOST_FLOPS // flops)))
    x_TD = jnp.ones((rows, config.width), dtype)
    w_DF = jnp.ones((config.width, config.ffn), dtype)
    product = jax.jit(lambda x_TD, w_DF: contract("TD,DF->TF", x_TD, w_DF, dtype))
    product(x_TD, w_DF).block_until_ready()
    best = float("inf")
    for _ in range(_REPEATS):
        began = time.perf_counter()
        product(x_TD, w_DF).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return rows * flops / best
