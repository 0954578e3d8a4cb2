"""From examples to blocks: updates of a local training, packed rows, and blocks of one fixed shape.

A block shape is chosen once for a run, so the client step compiles once. Rows are packed with
several examples of one client, and a block takes rows of any clients, so clients of unequal length
and number cost little padding.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from feddpa_jax.fed.rows import Rows
from feddpa_jax.types import TokenizedExample

# A token in a row of T attends to T others; at this T attention costs as much as the frozen maps.
ATTENTION_LENGTH = 400


class BlockShape(NamedTuple):
    """Rows B, tokens a row T, and response positions P of every block."""

    rows: int
    length: int
    positions: int


class Segment(NamedTuple):
    """An example in a packed row, the weight of each of its response positions, and a number."""

    example: TokenizedExample
    weight: float
    ident: int = 0


class PackedRow(NamedTuple):
    """Examples of one client that share a row; `number` counts the client's rows of this update."""

    client: int
    number: int
    segments: list[Segment]

    @property
    def positions(self) -> int:
        """Response positions in the row."""
        return sum(response_length(segment.example) for segment in self.segments)


class Placed(NamedTuple):
    """Where an example went: block-relative row, first token, and first response position."""

    ident: int
    row: int
    start: int
    first_position: int


def response_length(example: TokenizedExample) -> int:
    """Number of response tokens, end token included."""
    return len(example.tokens_T) - example.prompt_length


def local_updates(
    count: int,
    *,
    epochs: int,
    batch_size: int,
    micro_batch_size: int,
    rng: np.random.Generator | None,
) -> list[list[np.ndarray]]:
    """The updates of one local training: for each a list of micro-batches of example indexes.

    Args:
      count: the client's number of examples.
      epochs: passes over them.
      batch_size: examples an update; the last one of an epoch may be smaller.
      micro_batch_size: examples a micro-batch.
      rng: shuffles every epoch; None keeps the order of the data.
    """
    updates = []
    for _ in range(epochs):
        order = np.arange(count) if rng is None else rng.permutation(count)
        for start in range(0, count, batch_size):
            batch = order[start : start + batch_size]
            updates.append(
                [batch[i : i + micro_batch_size] for i in range(0, len(batch), micro_batch_size)]
            )
    return updates


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indexes of `lengths` in bins of at most `capacity`.

    >>> pack([5, 3, 4, 2], 7)
    [[0, 3], [2, 1]]
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        assert length <= capacity, f"an example of {length} tokens does not fit {capacity}"
        best = min(
            (b for b in range(len(bins)) if room[b] >= length),
            key=lambda b: room[b],
            default=None,
        )
        if best is None:
            bins.append([index])
            room.append(capacity - length)
        else:
            bins[best].append(index)
            room[best] -= length
    return bins


def update_rows(
    client: int,
    examples: Sequence[TokenizedExample],
    micro_batches: Sequence[np.ndarray],
    length: int,
) -> list[PackedRow]:
    """The packed rows of one client's update.

    A response position weighs 1 / (micro-batches * response tokens of its micro-batch), so the sum
    over positions is the mean over micro-batches of each one's mean over its response tokens.
    """
    segments = []
    for micro in micro_batches:
        total = sum(response_length(examples[i]) for i in micro)
        weight = 1.0 / (len(micro_batches) * total)
        segments += [Segment(examples[i], weight, int(i)) for i in micro]
    return pack_rows(client, segments, length)


def pack_rows(client: int, segments: Sequence[Segment], length: int) -> list[PackedRow]:
    """Packs segments of one client into rows of at most `length` tokens."""
    bins = pack([len(segment.example.tokens_T) for segment in segments], length)
    return [
        PackedRow(client, number, [segments[i] for i in members])
        for number, members in enumerate(bins)
    ]


def split_blocks(rows: Iterable[PackedRow], shape: BlockShape) -> list[list[PackedRow]]:
    """Cuts a list of rows into blocks that fit the shape."""
    blocks: list[list[PackedRow]] = []
    positions = 0
    for row in rows:
        assert row.positions <= shape.positions
        full = blocks and len(blocks[-1]) == shape.rows
        if not blocks or full or positions + row.positions > shape.positions:
            blocks.append([])
            positions = 0
        blocks[-1].append(row)
        positions += row.positions
    return blocks


def fill(rows: Sequence[PackedRow], shape: BlockShape) -> tuple[Rows, list[Placed]]:
    """A block's arrays, padded to the shape, and where each segment went."""
    B, T, P = shape
    tokens_BT, position_BT, segment_BT = (np.zeros((B, T), np.int32) for _ in range(3))
    client_B, row_B = np.zeros(B, np.int32), np.zeros(B, np.uint32)
    row_P, place_P, target_P = (np.zeros(P, np.int32) for _ in range(3))
    weight_P = np.zeros(P, np.float32)
    placed, p = [], 0
    for b, row in enumerate(rows):
        client_B[b], row_B[b] = row.client, row.number
        t = 0
        for number, segment in enumerate(row.segments, start=1):
            tokens_T, prompt = segment.example
            end, count = t + len(tokens_T), len(tokens_T) - prompt
            tokens_BT[b, t:end] = tokens_T
            position_BT[b, t:end] = np.arange(len(tokens_T))
            segment_BT[b, t:end] = number
            row_P[p : p + count] = b
            place_P[p : p + count] = np.arange(t + prompt - 1, end - 1)
            target_P[p : p + count] = tokens_T[prompt:]
            weight_P[p : p + count] = segment.weight
            placed.append(Placed(segment.ident, b, t, p))
            t, p = end, p + count
    tokens = (tokens_BT, position_BT, segment_BT, client_B, row_B)
    return Rows(*map(jnp.asarray, (*tokens, row_P, place_P, target_P, weight_P))), placed


def choose_shape(
    updates: Sequence[Sequence[list[Segment]]], block_tokens: int, longest: int
) -> BlockShape:
    """The block shape that computes a sample of updates at the least cost.

    A row of T tokens costs T (1 + T / ATTENTION_LENGTH); every update is a whole number of blocks.

    Args:
      updates: for each update, for each client its segments.
      block_tokens: most tokens of a block, where the longest example leaves a choice.
      longest: tokens of the longest example there is, in the sample or not.

    Returns:
      The shape; its rows hold the longest example, its positions every block of the sample.
    """
    first = -(-longest // 8) * 8
    candidates = sorted({first, *range(first, max(2 * first, 256) + 1, 8)})
    if len(candidates) > 12:
        candidates = candidates[:: -(-len(candidates) // 12)]
    best: tuple[float, BlockShape] | None = None
    for length in candidates:
        packed = [
            [
                row
                for client, own in enumerate(update)
                if own
                for row in pack_rows(client, own, length)
            ]
            for update in updates
        ]
        most = max(len(rows) for rows in packed)
        blocks = -(-most // max(1, block_tokens // length))
        open_shape = BlockShape(-(-most // blocks), length, 2**30)
        split = [block for rows in packed for block in split_blocks(rows, open_shape)]
        cost = len(split) * open_shape.rows * length * (1 + length / ATTENTION_LENGTH)
        if best is None or cost < best[0]:
            positions = max(sum(row.positions for row in block) for block in split)
            positions = max(positions, length)
            shape = open_shape._replace(positions=-(-positions // 32) * 32)
            best = cost, shape
    assert best is not None
    return best[1]
