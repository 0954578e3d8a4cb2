"""From examples to rows: the updates of a local training, and examples packed into rows.

Rows come in a few lengths, chosen once for a run. A row holds examples of one client; each example
attends only to itself.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from feddpa_jax.training.costs import Costs
from feddpa_jax.types import TokenizedExample


class Segment(NamedTuple):
    """An example in a packed row, the weight of each of its response positions, and a number."""

    example: TokenizedExample
    weight: float
    ident: int = 0


class PackedRow(NamedTuple):
    """Examples of one client that share a row.

    Attributes:
      client: the client's index on its shard's client axis.
      number: of the row among the client's rows of this update.
      length: T, tokens of the row with its padding.
      segments: the examples.
    """

    client: int
    number: int
    length: int
    segments: list[Segment]

    @property
    def positions(self) -> int:
        """Response positions in the row."""
        return sum(response_length(segment.example) for segment in self.segments)

    @property
    def tokens(self) -> int:
        """Real tokens in the row."""
        return sum(len(segment.example.tokens_T) for segment in self.segments)


def response_length(example: TokenizedExample) -> int:
    """Number of tokens that training's loss is on: the response's, and those of earlier answers."""
    if example.trained_T is not None:
        return int(example.trained_T.sum())
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
      batch_size: examples in an update; the last update of an epoch may be smaller.
      micro_batch_size: examples in a micro-batch.
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


def pack(
    lengths: Sequence[int], row_lengths: Sequence[int], costs: Costs
) -> list[tuple[int, list[int]]]:
    """Puts examples into rows at the least cost, by best-fit decreasing.

    Rows of each capacity are tried, with larger ones for the examples that need them; every row
    then shrinks to the shortest length that holds it.

    Args:
      lengths: tokens of each example.
      row_lengths: the lengths that rows may have, ascending; the last holds every example.
      costs: of rows.

    Returns:
      (row length, indexes of `lengths`) of each row.

    >>> from feddpa_jax.training.costs import CPU_COSTS
    >>> pack([5, 3, 4, 2], [7], CPU_COSTS)
    [(7, [0, 3]), (7, [2, 1])]
    >>> pack([7, 3], [4, 8], CPU_COSTS)
    [(8, [0]), (4, [1])]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    tried = [_pack(lengths, order, row_lengths, capacity) for capacity in row_lengths]
    return min(tried, key=lambda rows: sum(costs.row(length) for length, _ in rows))


def _pack(
    lengths: Sequence[int], order: Sequence[int], row_lengths: Sequence[int], capacity: int
) -> list[tuple[int, list[int]]]:
    bins: list[list[int]] = []
    used: list[int] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), ascending
    for index in order:
        length = lengths[index]
        assert length <= row_lengths[-1], f"an example of {length} tokens fits no row"
        place = bisect.bisect_left(rooms, (length, -1))
        if place == len(rooms):
            room, b = max(capacity, row_lengths[bisect.bisect_left(row_lengths, length)]), len(bins)
            bins.append([])
            used.append(0)
        else:
            room, b = rooms.pop(place)
        bins[b].append(index)
        used[b] += length
        bisect.insort(rooms, (room - length, b))
    return [
        (row_lengths[bisect.bisect_left(row_lengths, total)], members)
        for total, members in zip(used, bins, strict=True)
    ]


def update_rows(
    client: int,
    examples: Sequence[TokenizedExample],
    micro_batches: Sequence[np.ndarray],
    row_lengths: Sequence[int],
    costs: Costs,
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
    return pack_rows(client, segments, row_lengths, costs)


def pack_rows(
    client: int, segments: Sequence[Segment], row_lengths: Sequence[int], costs: Costs
) -> list[PackedRow]:
    """Packs segments of one client into rows."""
    rows = pack([len(segment.example.tokens_T) for segment in segments], row_lengths, costs)
    return [
        PackedRow(client, number, length, [segments[i] for i in members])
        for number, (length, members) in enumerate(rows)
    ]
