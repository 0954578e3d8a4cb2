"""The input of the compiled client step: blocks of packed rows, each row of one client."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class BlockShape(NamedTuple):
    """Rows B, tokens per row T, and response positions P of a block, on each shard."""

    rows: int
    length: int
    positions: int


class Rows(NamedTuple):
    """A block of B rows of T tokens, and the P response positions in them.

    A row packs examples (segments) of one client; each attends to itself alone. Rows of one client
    need not be as many as another's, and padding rows have segment 0 throughout. The arrays are the
    host's (numpy) until they are put on the mesh.

    Attributes:
      tokens_BT: token ids.
      position_BT: each token's position in its own example.
      segment_BT: number of the example within the row, from 1; 0 is padding.
      client_B: index of the row's client on the step's client axis.
      row_B: number of the row among its client's rows of this update (dropout follows it).
      row_P: row of each response position.
      place_P: the token in that row whose hidden state predicts the target.
      target_P: the token to predict.
      weight_P: the position's share in its client's loss; 0 for padding.
    """

    tokens_BT: jax.Array
    position_BT: jax.Array
    segment_BT: jax.Array
    client_B: jax.Array
    row_B: jax.Array
    row_P: jax.Array
    place_P: jax.Array
    target_P: jax.Array
    weight_P: jax.Array


def rows_like(shape: BlockShape, shards: int) -> Rows:
    """Shapes and dtypes of the rows of a block, all shards' together."""
    B, T, P = shape.rows * shards, shape.length, shape.positions * shards

    def empty() -> Rows:
        tokens_BT, client_B, row_P = (jnp.zeros(size, jnp.int32) for size in ((B, T), B, P))
        row_B, weight_P = client_B.astype(jnp.uint32), row_P.astype(jnp.float32)
        return Rows(tokens_BT, tokens_BT, tokens_BT, client_B, row_B, row_P, row_P, row_P, weight_P)

    return jax.eval_shape(empty)


class Block(NamedTuple):
    """One call of the compiled step.

    Attributes:
      rows: B rows for each shard of the mesh axis `clients`, one shard after the other; indexes of
        rows and clients count within the shard.
      ends_C: whether a client's update ends with this block.
      real_tokens: tokens of examples.
      computed_tokens: tokens computed, padding included.
    """

    rows: Rows
    ends_C: np.ndarray
    real_tokens: int
    computed_tokens: int


class Chunk(NamedTuple):
    """The local trainings of some clients, all on one client axis.

    Attributes:
      members: the clients, [c]; c <= C.
      slots: each member's place on the client axis, [c].
      names: their names, for messages.
      phase: name of the phase, for messages.
      id_C: a number for each client that follows from its name alone (randomness follows it).
      total_C: number of updates of each client's training; 0 for places that stay empty.
      blocks: the blocks, in order.
    """

    members: np.ndarray
    slots: np.ndarray
    names: tuple[str, ...]
    phase: str
    id_C: np.ndarray
    total_C: np.ndarray
    blocks: Iterable[Block]
