"""What a step repeats: the head's chunks of positions, which the compiler counts once.

A compiler's cost analysis takes a loop's body as computed once, however often the loop goes round.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from feddpa_jax.models.decoder import Model
from feddpa_jax.models.head import positions_at_once, weighted_nll


class Cost(NamedTuple):
    """Of a program on one device: FLOPs, bytes of memory traffic, and seconds, 0 if not told."""

    flops: float
    traffic: float
    seconds: float = 0.0


NOTHING = Cost(0.0, 0.0)


def cost_of(compiled: jax.stages.Compiled) -> Cost:
    """What the compiler counts."""
    costs: Any = compiled.cost_analysis() or {}
    return Cost(
        costs.get("flops", 0.0),
        costs.get("bytes accessed", 0.0),
        max(costs.get("optimal_seconds") or 0.0, 0.0),
    )


def repeated_head(model: Model, positions: int, mesh: Mesh) -> Cost:
    """The cost of a step's chunks of positions after the first.

    Args:
      model: the base, or its shapes, on the mesh.
      positions: response positions of a block on each shard.
      mesh: whose devices it is compiled for.
    """
    at_once = positions_at_once(model.config.vocab_size)
    chunks = -(-positions // at_once)
    if chunks <= 1:
        return NOTHING
    size = -(-positions // chunks)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def like(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    def loss(hidden_PD: jax.Array, model: Model, target_P: jax.Array, weight_P: jax.Array):
        return weighted_nll(model, hidden_PD, target_P, weight_P).sum()

    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), model
    )
    own = (like((size,), jnp.int32), like((size,), jnp.float32))
    hidden_PD = like((size, model.config.width), jnp.float32)
    one = cost_of(jax.jit(jax.value_and_grad(loss)).lower(hidden_PD, shapes, *own).compile())
    return Cost._make((chunks - 1) * value for value in one)
