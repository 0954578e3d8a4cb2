"""The blocks of a chunk: of clients that train at once, each with its updates over its examples."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from feddpa_jax.training.blocks import fill, schedule
from feddpa_jax.training.costs import Costs
from feddpa_jax.training.packing import PackedRow, update_rows
from feddpa_jax.training.rows import Block, BlockShape
from feddpa_jax.types import TokenizedExample


class Work(NamedTuple):
    """Some updates over examples of a client, and how many its training has in all."""

    examples: Sequence[TokenizedExample]
    updates: Sequence[Sequence[np.ndarray]]
    total: int


def as_one(examples: Sequence[TokenizedExample]) -> Work:
    """One update over examples in one micro-batch; no update if there are none.

    >>> as_one([TokenizedExample(np.arange(3), 1)] * 2).total
    1
    """
    updates = [[np.arange(len(examples))]] if examples else []
    return Work(examples, updates, len(updates))


def with_room(
    shapes: Sequence[BlockShape], examples: Sequence[TokenizedExample]
) -> Sequence[BlockShape]:
    """The block shapes, and one for longer rows if an example needs them."""
    longest = max((len(example.tokens_T) for example in examples), default=0)
    if longest <= shapes[-1].length:
        return shapes
    length = -(-longest // 8) * 8
    return [*shapes, BlockShape(1, length, -(-length // 32) * 32)]


def blocks_of(
    work: Sequence[Sequence[Work]], places: int, shapes: Sequence[BlockShape], costs: Costs
) -> Iterator[Block]:
    """The blocks of all shards' work, in the order in which they are computed.

    Rows are packed now, blocks are filled as they are asked for.

    Args:
      work: by shard, its clients' updates, in the order of their places.
      places: on each shard's client axis.
      shapes: the block shapes, the shortest rows first.
      costs: of rows and blocks on the device.
    """
    lengths = [shape.length for shape in shapes]
    rows = [
        [
            [update_rows(place, own.examples, update, lengths, costs) for update in own.updates]
            for place, own in enumerate(shard)
        ]
        for shard in work
    ]
    return _filled(rows, places, shapes)


def _filled(
    rows: Sequence[Sequence[Sequence[Sequence[PackedRow]]]],
    places: int,
    shapes: Sequence[BlockShape],
) -> Iterator[Block]:
    shards = len(rows)
    for planned in schedule(rows, {shape.length: shape for shape in shapes}):
        parts = [fill(rows, planned.shape)[0] for rows in planned.rows]
        ends_C = np.zeros(shards * places, bool)
        for s, ends in enumerate(planned.ends):
            ends_C[[s * places + place for place in ends]] = True
        yield Block(
            rows=jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts),
            ends_C=ends_C,
            real_tokens=sum(row.tokens for rows in planned.rows for row in rows),
            computed_tokens=shards * planned.shape.rows * planned.shape.length,
        )
