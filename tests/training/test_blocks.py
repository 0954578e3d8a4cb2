"""Blocks: the arrays by hand, and a schedule in which no client waits for another."""

import numpy as np
import pytest

from feddpa_jax.training.blocks import Planned, choose_lengths, choose_shapes, fill, schedule
from feddpa_jax.training.costs import CPU_COSTS, Costs
from feddpa_jax.training.packing import PackedRow, Segment, pack_rows, update_rows
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.types import TokenizedExample


def example(length: int, prompt: int, start: int = 100) -> TokenizedExample:
    return TokenizedExample(np.arange(start, start + length, dtype=np.int32), prompt)


def test_fill_by_hand():
    # Two examples in one row of 8: tokens 10 11 12 (prompt 1) and 20 21 22 23 (prompt 3).
    segments = [Segment(example(3, 1, 10), 0.25, 7), Segment(example(4, 3, 20), 0.5, 9)]
    (row,) = pack_rows(5, segments, [8], CPU_COSTS)
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


def test_earlier_answers_are_trained_on_by_hand():
    """Of 10 to 15, 11 is an earlier answer and 14, 15 the last one; the loss is a mean of three."""
    trained_T = np.array([False, True, False, False, True, True])
    talk = example(6, 4, 10)._replace(trained_T=trained_T)
    micro = [np.array([0]), np.array([1])]
    (row,) = update_rows(0, [talk, example(3, 2, 20)], micro, [9], CPU_COSTS)
    block, placed = fill([row], BlockShape(1, 9, 5))
    np.testing.assert_array_equal(block.place_P, [0, 3, 4, 7, 0])
    np.testing.assert_array_equal(block.target_P, [11, 14, 15, 22, 0])
    # Two micro-batches, of three tokens that are trained on and of one.
    np.testing.assert_allclose(block.weight_P, [1 / 6, 1 / 6, 1 / 6, 1 / 2, 0])
    assert [(p.start, p.first_position) for p in placed] == [(0, 0), (6, 3)]
    assert row.positions == 4


def test_rows_of_two_clients_by_hand():
    """Row 0 is client 2's row number 3, row 1 client 1's row number 0; the third is padding."""
    rows = [
        PackedRow(2, 3, 4, [Segment(example(3, 2, 10), 0.5, 8)]),
        PackedRow(
            1, 0, 4, [Segment(example(2, 1, 20), 0.25, 6), Segment(example(2, 1, 30), 2.0, 7)]
        ),
    ]
    block, placed = fill(rows, BlockShape(3, 4, 5))
    np.testing.assert_array_equal(
        block.tokens_BT, [[10, 11, 12, 0], [20, 21, 30, 31], [0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(block.segment_BT, [[1, 1, 1, 0], [1, 1, 2, 2], [0, 0, 0, 0]])
    np.testing.assert_array_equal(block.position_BT, [[0, 1, 2, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
    assert (block.client_B.tolist(), block.row_B.tolist()) == ([2, 1, 0], [3, 0, 0])
    np.testing.assert_array_equal(block.row_P, [0, 1, 1, 0, 0])
    np.testing.assert_array_equal(block.place_P, [1, 0, 2, 0, 0])
    np.testing.assert_array_equal(block.target_P, [12, 21, 31, 0, 0])
    np.testing.assert_allclose(block.weight_P, [0.5, 0.25, 2.0, 0.0, 0.0])
    assert placed == [(8, 0, 0, 0), (6, 1, 0, 1), (7, 1, 2, 2)]


def test_no_more_lengths_than_are_asked_for():
    updates = [np.random.default_rng(0).integers(4, 90, 60).tolist()]
    for most in (1, 2, 3):
        nested = choose_lengths(updates, longest=90, costs=CPU_COSTS, compile_cost=0.0, most=most)
        assert [len(lengths) for lengths in nested] == list(range(1, most + 1))
    (one,) = choose_lengths(updates, longest=90, costs=CPU_COSTS, compile_cost=1e6, most=3)
    assert len(one) == 1  # None of the others is worth its compilation.


def test_positions_are_in_steps_of_32_and_hold_a_row():
    sample = [[[[Segment(example(n, 2), 1.0) for n in (6, 30, 9, 50)]]]]
    (shape,) = choose_shapes(sample, block_tokens=256, costs=CPU_COSTS, longest=50)
    assert shape.positions % 32 == 0 and shape.positions >= shape.length


def work_of(counts: list[list[int]], length: int = 10) -> list[list[list[PackedRow]]]:
    """Clients with so many rows in each of their updates."""
    return [
        [
            [PackedRow(c, number, length, [Segment(example(8, 5), 1.0)]) for number in range(count)]
            for count in updates
        ]
        for c, updates in enumerate(counts)
    ]


def check(blocks: list[Planned], shards: list) -> None:
    """Every row once, updates in order, and ended when their last row is computed."""
    for s, work in enumerate(shards):
        done = [0] * len(work)  # updates of each client that have ended
        left = [len(client[0]) if client else 0 for client in work]
        for block in blocks:
            rows, ends = block.rows[s], block.ends[s]
            assert len(rows) <= block.shape.rows
            assert sum(row.positions for row in rows) <= block.shape.positions
            assert all(row.length == block.shape.length for row in rows)
            for row in rows:
                left[row.client] -= 1
                assert left[row.client] >= 0  # no row of an update that may not begin yet
            for c in ends:
                assert left[c] == 0
                done[c] += 1
                left[c] = len(work[c][done[c]]) if done[c] < len(work[c]) else 0
        assert done == [len(client) for client in work]


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_every_row_once_and_updates_in_order(rows: int):
    draw = np.random.default_rng(0)
    counts = [draw.integers(1, 6, draw.integers(1, 7)).tolist() for _ in range(5)]
    shards = [work_of(counts[:3]), work_of(counts[3:])]
    blocks = list(schedule(shards, {10: BlockShape(rows, 10, 100)}))
    check(blocks, shards)
    assert sum(len(own) for block in blocks for own in block.rows) == sum(map(sum, counts))


def test_rows_of_several_lengths():
    shards = [[client + work_of([[2, 1]], 20)[0] for client in work_of([[3], [1, 2]])]]
    shards[0] = [
        [[row._replace(client=c) for row in update] for update in client]
        for c, client in enumerate(shards[0])
    ]
    shapes = {10: BlockShape(2, 10, 100), 20: BlockShape(1, 20, 100)}
    check(list(schedule(shards, shapes)), shards)


def test_positions_bound_a_block():
    shards = [work_of([[4]])]
    blocks = list(schedule(shards, {10: BlockShape(4, 10, 7)}))  # 3 positions a row
    assert [len(block.rows[0]) for block in blocks] == [2, 2]
    check(blocks, shards)


def test_unequal_clients_fill_their_blocks():
    """One client has five times the work of the seven others, and nobody waits."""
    shards = [work_of([[3] * 20] + [[3] * 4] * 7)]
    blocks = list(schedule(shards, {10: BlockShape(3, 10, 100)}))
    full = sum(len(block.rows[0]) == 3 for block in blocks)
    assert full == len(blocks) == (20 + 28)


def test_who_has_most_work_left_comes_first():
    """Clients 0 and 1 have a row, client 2 has two updates of one: it may not wait."""
    blocks = list(schedule([work_of([[1], [1], [1, 1]])], {10: BlockShape(2, 10, 100)}))
    # Client 2 beside client 0, then beside client 1; else it would be alone in a third block.
    assert [sorted(row.client for row in block.rows[0]) for block in blocks] == [[0, 2], [1, 2]]


def test_shapes_fit_the_longest_and_packs_the_short():
    draw = np.random.default_rng(0)
    sample = [
        [
            [[Segment(example(int(n), 2), 1.0) for n in draw.integers(10, 50, 8)] for _ in range(6)]
            for _ in range(8)
        ]
    ]
    shapes = choose_shapes(sample, block_tokens=1024, costs=CPU_COSTS, longest=49, share=1e-3)
    assert shapes[-1].length >= 49
    assert len(shapes) > 1
    assert all(shape.rows * shape.length <= 1024 for shape in shapes)
    lengths = [shape.length for shape in shapes]
    packed = [
        [
            [pack_rows(c, update, lengths, CPU_COSTS) for update in client]
            for c, client in enumerate(sample[0])
        ]
    ]
    blocks = list(schedule(packed, {shape.length: shape for shape in shapes}))
    check(blocks, packed)
    real = sum(row.tokens for block in blocks for row in block.rows[0])
    assert real / sum(block.shape.rows * block.shape.length for block in blocks) > 0.85


def test_few_tokens_pay_for_one_compilation():
    sample = [[[[Segment(example(n, 2), 1.0) for n in (6, 30, 9, 50)]]]]
    assert len(choose_shapes(sample, block_tokens=256, costs=CPU_COSTS, longest=50)) == 1


@pytest.mark.parametrize(("share", "lengths"), [(1e-6, [40, 120]), (0.05, [120])])
def test_a_row_length_must_be_worth_its_compilation(share: float, lengths: list[int]):
    """A compilation counts with the sample's share of all that will be computed."""
    draw = np.random.default_rng(1)
    sample = [
        [
            [
                [
                    Segment(example(int(n), int(n) // 2), 1.0)
                    for n in draw.choice([8, 16, 40, 120], size=int(draw.integers(2, 6)))
                ]
                for _ in range(int(draw.integers(1, 4)))
            ]
            for _ in range(3)
        ]
    ]
    costs = Costs(block=91, compilation=2375, attention_length=400)
    shapes = choose_shapes(sample, block_tokens=256, costs=costs, longest=120, share=share)
    assert [shape.length for shape in shapes] == lengths


def test_rows_hold_examples_that_no_sampled_update_shows():
    sample = [[[[Segment(example(6, 2), 1.0)]]]]
    assert choose_shapes(sample, block_tokens=16, costs=CPU_COSTS, longest=90)[-1].length >= 90
