"""Packing: every token once, in rows of one client, with the right weights and targets."""

import numpy as np
import pytest

from feddpa_jax.data.batching import (
    BlockShape,
    Segment,
    choose_shape,
    fill,
    local_updates,
    pack,
    pack_rows,
    split_blocks,
    update_rows,
)
from feddpa_jax.types import TokenizedExample


def example(length: int, prompt: int, start: int = 100) -> TokenizedExample:
    return TokenizedExample(np.arange(start, start + length, dtype=np.int32), prompt)


def test_fill_by_hand():
    # Two examples in one row of 8: tokens 10 11 12 (prompt 1) and 20 21 22 23 (prompt 3).
    segments = [Segment(example(3, 1, 10), 0.25, 7), Segment(example(4, 3, 20), 0.5, 9)]
    (row,) = pack_rows(5, segments, 8)
    block, placed = fill([row], BlockShape(2, 8, 4))
    np.testing.assert_array_equal(block.tokens_BT[0], [20, 21, 22, 23, 10, 11, 12, 0])
    np.testing.assert_array_equal(block.segment_BT[0], [1, 1, 1, 1, 2, 2, 2, 0])
    np.testing.assert_array_equal(block.position_BT[0], [0, 1, 2, 3, 0, 1, 2, 0])
    # 23 is predicted from place 2; 11 from 4 and 12 from 5.
    np.testing.assert_array_equal(block.place_P, [2, 4, 5, 0])
    np.testing.assert_array_equal(block.target_P, [23, 11, 12, 0])
    np.testing.assert_allclose(block.weight_P, [0.5, 0.25, 0.25, 0])
    np.testing.assert_array_equal(block.client_B, [5, 0])
    np.testing.assert_array_equal(block.segment_BT[1], 0)
    assert [(p.ident, p.start, p.first_position) for p in placed] == [(9, 0, 0), (7, 4, 1)]


def test_pack_keeps_capacity_and_loses_nothing():
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    bins = pack(lengths, 64)
    assert sorted(i for members in bins for i in members) == list(range(200))
    assert all(sum(lengths[i] for i in members) <= 64 for members in bins)
    assert len(bins) <= 1.1 * -(-sum(lengths) // 64) + 1


def test_weights_are_means_of_micro_batch_means():
    examples = [example(5, 3), example(9, 3), example(4, 3)]  # 2, 6 and 1 response tokens
    rows = update_rows(0, examples, [np.array([0, 1]), np.array([2])], 32)
    weights = {s.ident: s.weight for row in rows for s in row.segments}
    # Micro-batch 1 has 8 response tokens, micro-batch 2 has 1; each counts half.
    assert weights == pytest.approx({0: 1 / 16, 1: 1 / 16, 2: 1 / 2})


def test_updates_cover_each_epoch_and_keep_the_last_batch():
    updates = local_updates(
        10, epochs=2, batch_size=4, micro_batch_size=3, rng=np.random.default_rng(0)
    )
    sizes = [[len(micro) for micro in update] for update in updates]
    assert sizes == [[3, 1], [3, 1], [2]] * 2
    for epoch in (updates[:3], updates[3:]):
        assert sorted(np.concatenate([m for u in epoch for m in u])) == list(range(10))
    first, second = (np.concatenate([m for u in e for m in u]) for e in (updates[:3], updates[3:]))
    assert not np.array_equal(first, second)


def test_blocks_hold_rows_and_positions():
    rows = [r for c in range(4) for r in pack_rows(c, [Segment(example(6, 2), 1.0)] * 5, 12)]
    blocks = split_blocks(rows, BlockShape(3, 12, 20))
    assert [row for block in blocks for row in block] == rows
    assert all(len(block) <= 3 and sum(r.positions for r in block) <= 20 for block in blocks)


def test_shape_fits_the_longest_and_packs_the_short():
    draw = np.random.default_rng(0)
    updates = [
        [[Segment(example(int(n), 2), 1.0) for n in draw.integers(10, 50, 8)] for _ in range(8)]
        for _ in range(6)
    ]
    shape = choose_shape(updates, 1024, 49)
    assert shape.length >= 49
    assert shape.rows * shape.length <= 1024
    real = sum(len(s.example.tokens_T) for update in updates for own in update for s in own)
    blocks = 0
    for update in updates:
        rows = [r for c, own in enumerate(update) for r in pack_rows(c, own, shape.length)]
        blocks += len(split_blocks(rows, shape))
    assert real / (blocks * shape.rows * shape.length) > 0.7


def test_rows_hold_examples_that_no_sampled_update_shows():
    update = [[Segment(example(6, 2), 1.0)]]
    assert choose_shape([update], 16, 90).length >= 90
