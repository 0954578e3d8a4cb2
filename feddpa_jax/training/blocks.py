"""From rows to blocks: the arrays that the compiled step computes on, in a few fixed shapes.

A block holds rows of one length, of any clients with an unfinished update. Clients need not keep in
step with each other: when all rows of a client's update are computed, the client is updated after
that block, and rows of its next update may be in the next block. So blocks stay nearly full until
the end, however unequal the clients are.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from feddpa_jax.training.costs import Costs
from feddpa_jax.training.packing import PackedRow, Segment, pack, pack_rows, response_length
from feddpa_jax.training.rows import BlockShape, Rows

# About how many examples row lengths are chosen on: packing takes time too.
LENGTHS_FROM = 2000


class Placed(NamedTuple):
    """Where an example went: block-relative row, first token, and first response position."""

    ident: int
    row: int
    start: int
    first_position: int


class Planned(NamedTuple):
    """A block to be computed.

    Attributes:
      shape: its shape on each shard.
      rows: by shard, its rows.
      ends: by shard, the clients whose update ends with this block.
    """

    shape: BlockShape
    rows: list[list[PackedRow]]
    ends: list[list[int]]


# A client's local training: the rows of each of its updates.
Work = Sequence[Sequence[PackedRow]]


class _Client:
    """A client's remaining rows; those of the current update by length."""

    def __init__(self, place: int, work: Work):
        self.place = place
        self.work = work
        self.left = sum(row.length for update in work for row in update)
        self.update = -1
        self.open: dict[int, list[PackedRow]] = {}
        self.advance()

    def advance(self) -> None:
        """Goes on to the next update."""
        self.update += 1
        self.open = {}
        if self.update < len(self.work):
            for row in reversed(self.work[self.update]):
                self.open.setdefault(row.length, []).append(row)

    def take(self, length: int) -> PackedRow:
        """The next row of a length."""
        row = self.open[length].pop()
        if not self.open[length]:
            del self.open[length]
        self.left -= length
        return row


class _Shard:
    """A shard's unfinished clients, and how many rows of each length they have."""

    def __init__(self, work: Sequence[Work]):
        self.clients = [_Client(place, own) for place, own in enumerate(work) if own]
        self.ready: Counter[int] = Counter()
        for client in self.clients:
            self._count(client)

    def _count(self, client: _Client) -> None:
        for length, rows in client.open.items():
            self.ready[length] += len(rows)

    def take(self, shape: BlockShape) -> tuple[list[PackedRow], list[int]]:
        """The shard's part of a block, and the places of the clients whose update ends with it.

        Rows are those of the clients with the most work left first.
        """
        rows: list[PackedRow] = []
        ended: list[_Client] = []
        room = shape.positions
        self.clients.sort(key=lambda client: (-client.left, client.place))
        for client in self.clients:
            while len(rows) < shape.rows and (open_ := client.open.get(shape.length)):
                room -= open_[-1].positions
                if room < 0:
                    break
                rows.append(client.take(shape.length))
            if not client.open:
                ended.append(client)
            if room < 0 or len(rows) == shape.rows:
                break
        self.ready[shape.length] -= len(rows)
        for client in ended:
            client.advance()
            self._count(client)
        self.clients = [client for client in self.clients if client.open]
        return rows, sorted(client.place for client in ended)


def schedule(
    shards: Sequence[Sequence[Work]], shapes: Mapping[int, BlockShape]
) -> Iterator[Planned]:
    """Plans the blocks of some clients' local trainings.

    All shards compute blocks of the same shape at the same time, each on rows of its own clients.

    Args:
      shards: for each shard, for each place on its client axis, the work.
      shapes: the block shape of each row length.

    Yields:
      Blocks until nothing is left.
    """
    working = [_Shard(work) for work in shards]

    def filled(length: int) -> float:
        rows = shapes[length].rows
        return sum(min(rows, shard.ready[length]) for shard in working) / rows

    while any(shard.clients for shard in working):
        length = max(shapes, key=lambda length: (filled(length), length))
        parts = [shard.take(shapes[length]) for shard in working]
        yield Planned(shapes[length], [rows for rows, _ in parts], [ends for _, ends in parts])


def fill(rows: Sequence[PackedRow], shape: BlockShape) -> tuple[Rows, list[Placed]]:
    """A block's arrays on one shard, padded to the shape, and where each segment went."""
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
            tokens_T, prompt, trained_T = segment.example
            trained = np.s_[prompt:] if trained_T is None else np.flatnonzero(trained_T)
            end, count = t + len(tokens_T), response_length(segment.example)
            tokens_BT[b, t:end] = tokens_T
            position_BT[b, t:end] = np.arange(len(tokens_T))
            segment_BT[b, t:end] = number
            row_P[p : p + count] = b
            place_P[p : p + count] = np.arange(t - 1, end - 1)[trained]
            target_P[p : p + count] = tokens_T[trained]
            weight_P[p : p + count] = segment.weight
            placed.append(Placed(segment.ident, b, t, p))
            t, p = end, p + count
    by_row = [tokens_BT, position_BT, segment_BT, client_B, row_B]
    return Rows(*by_row, *[row_P, place_P, target_P, weight_P]), placed


def choose_shapes(
    sample: Sequence[Sequence[Sequence[Sequence[Segment]]]],
    *,
    block_tokens: int,
    costs: Costs,
    longest: int,
    share: float = 1.0,
    most_lengths: int = 6,
) -> tuple[BlockShape, ...]:
    """The row lengths and block shapes that compute a sample of local trainings at the least cost.

    Args:
      sample: by shard, client and update, the segments.
      block_tokens: most tokens of a block on a shard, where the longest example leaves a choice.
      costs: of rows, blocks and compilations.
      longest: tokens of the longest example there is, in the sample or not.
      share: the sample's share of all that will be computed; compilations are paid once.
      most_lengths: most row lengths.

    Returns:
      A shape for each row length, ascending; the last one's rows hold the longest example.
    """
    updates = [update for shard in sample for client in shard for update in client]
    packable = _some(updates, LENGTHS_FROM)
    part = sum(map(len, packable)) / sum(map(len, updates))
    nested = choose_lengths(
        [[len(segment.example.tokens_T) for segment in update] for update in packable],
        longest=longest,
        costs=costs,
        compile_cost=costs.compilation * share * part,
        most=most_lengths,
    )
    best: tuple[float, tuple[BlockShape, ...]] | None = None
    for lengths in nested:
        packed = [
            [
                [pack_rows(place, update, lengths, costs) for update in client]
                for place, client in enumerate(shard)
            ]
            for shard in sample
        ]
        size = block_tokens
        while best is None or size >= lengths[-1]:
            fitting = {length: max(1, size // length) for length in lengths}
            shapes = {length: BlockShape(B, length, B * length) for length, B in fitting.items()}
            blocks = list(schedule(packed, shapes))
            cost = costs.compilation * share * len(lengths) + sum(
                costs.block + block.shape.rows * costs.row(block.shape.length) for block in blocks
            )
            if best is None or cost < best[0]:
                best = cost, tuple(_with_positions(shapes[length], blocks) for length in lengths)
            size //= 2
    assert best is not None
    return best[1]


def _some(updates: Sequence[Sequence[Segment]], examples: int) -> list[Sequence[Segment]]:
    """A fixed random selection of the updates with about the wanted number of examples."""
    drawn, count = [], 0
    for index in np.random.default_rng(0).permutation(len(updates)):
        if count >= examples:
            break
        drawn.append(updates[index])
        count += len(updates[index])
    return drawn


def choose_lengths(
    updates: Sequence[Sequence[int]],
    *,
    longest: int,
    costs: Costs,
    compile_cost: float,
    most: int,
) -> list[list[int]]:
    """Sets of row lengths, each with one more than the one before that saves the most.

    The first set is one length that holds the longest example. A length is added while it saves
    more than its compilation costs.

    Args:
      updates: the lengths of the examples in each of a sample of clients' updates.
      longest: tokens of the longest example there is.
      costs: of rows.
      compile_cost: what a length must save on the sample.
      most: most lengths.

    Returns:
      The sets, each ascending.
    """
    top = -(-longest // 8) * 8
    step = -(-top // 256) * 8

    def cost(lengths: list[int]) -> float:
        packed = [pack(update, lengths, costs) for update in updates]
        return sum(costs.row(size) for rows in packed for size, _ in rows)

    # Rows longer than any example may hold several of the longest ones.
    lengths = min(([size] for size in (top, top * 5 // 32 * 8, 2 * top)), key=cost)
    least = cost(lengths)
    nested = [lengths]
    while len(lengths) < most:
        tried = [
            sorted([*lengths, size])
            for size in range(step, max(lengths[-1], top + step), step)
            if size not in lengths
        ]
        values = [cost(candidate) for candidate in tried]
        if not values or min(values) > least - compile_cost:
            break
        least = min(values)
        lengths = tried[values.index(least)]
        nested.append(lengths)
    return nested


def _with_positions(shape: BlockShape, blocks: Sequence[Planned]) -> BlockShape:
    """The shape with room for the response positions of every planned block, and of any one row."""
    positions = [
        sum(row.positions for row in rows)
        for block in blocks
        if block.shape.length == shape.length
        for rows in block.rows
    ]
    return shape._replace(positions=-(-max([shape.length, *positions]) // 32) * 32)
