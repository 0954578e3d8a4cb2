"""How much a round computes: blocks by shape, and real tokens."""

import dataclasses
from typing import NamedTuple

import numpy as np

from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.training.rows import BlockShape

# About how many examples a round's blocks are counted on; the counts are then scaled.
COUNTED_EXAMPLES = 20_000


class RoundWork(NamedTuple):
    """One phase of one round.

    Attributes:
      blocks: by rows and tokens of a shard's block, how many.
      real_tokens: tokens of examples.
      computed_tokens: tokens computed, padding included.
    """

    blocks: dict[BlockShape, float]
    real_tokens: float
    computed_tokens: float


def many_clients(data: TrainingData, clients: int) -> TrainingData:
    """A wanted number of clients, which use the examples of the given ones in turn."""
    lenders = [client % len(data.names) for client in range(clients)]
    return dataclasses.replace(
        data,
        names=tuple(f"client_{client}" for client in range(clients)),
        examples=tuple(data.examples[lender] for lender in lenders),
        availability=data.availability.of(np.array(lenders)),
    )


def count_work(data: TrainingData, shapes: tuple[BlockShape, ...]) -> RoundWork:
    """The work of one phase of the first round, from a part of every client's examples."""
    participants = data.participants(0)
    whole = sum(data.tokens(client) for client in participants)
    most = max(data.batch_size, COUNTED_EXAMPLES // len(participants))
    members = set(participants.tolist())
    examples = [
        data.examples[client][:most] if client in members else ()
        for client in range(len(data.names))
    ]
    part = dataclasses.replace(data, epochs=1, examples=examples)
    group = next(part.chunks(participants, 0, "global", shapes))
    blocks: dict[BlockShape, float] = {}
    of_length = {shape.length: shape for shape in shapes}
    real = computed = 0
    for block in group.blocks:
        shape = of_length[np.shape(block.rows.tokens_BT)[1]]
        blocks[shape] = blocks.get(shape, 0) + 1
        real, computed = real + block.real_tokens, computed + block.computed_tokens
    scale = whole / real
    scaled = {shape: scale * count for shape, count in blocks.items()}
    return RoundWork(scaled, whole, scale * computed)
