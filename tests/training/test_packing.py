"""Packing: every example once, in rows of one client, with the right weights."""

import numpy as np
import pytest

from feddpa_jax.training.costs import CPU_COSTS
from feddpa_jax.training.packing import local_updates, pack, update_rows
from feddpa_jax.types import TokenizedExample


def example(length: int, prompt: int, start: int = 100) -> TokenizedExample:
    return TokenizedExample(np.arange(start, start + length, dtype=np.int32), prompt)


@pytest.mark.parametrize("row_lengths", [[64], [24, 64], [16, 32, 48, 64, 128]])
def test_pack_keeps_capacity_and_loses_nothing(row_lengths: list[int]):
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    rows = pack(lengths, row_lengths, CPU_COSTS)
    assert sorted(i for _, members in rows for i in members) == list(range(200))
    for size, members in rows:
        assert size in row_lengths
        used = sum(lengths[i] for i in members)
        assert used <= size
        assert all(used > shorter for shorter in row_lengths if shorter < size)
    assert sum(size for size, _ in rows) <= 1.1 * sum(lengths) + 64


def test_more_lengths_never_cost_more():
    lengths = np.random.default_rng(1).integers(4, 60, 30).tolist()
    costs = [
        sum(CPU_COSTS.row(size) for size, _ in pack(lengths, row_lengths, CPU_COSTS))
        for row_lengths in ([64], [32, 64], [16, 32, 48, 64])
    ]
    assert costs[0] > costs[1] > costs[2]


def test_weights_are_means_of_micro_batch_means():
    examples = [example(5, 3), example(9, 3), example(4, 3)]  # 2, 6 and 1 response tokens
    rows = update_rows(0, examples, [np.array([0, 1]), np.array([2])], [32], CPU_COSTS)
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


def test_updates_in_the_datas_order():
    updates = local_updates(5, epochs=2, batch_size=3, micro_batch_size=2, rng=None)
    assert [[micro.tolist() for micro in update] for update in updates] == [
        *[[[0, 1], [2]], [[3, 4]]],
        *[[[0, 1], [2]], [[3, 4]]],
    ]


def test_rows_of_an_update_by_hand():
    """Two rows of 8: 6 tokens, and 5 with 3; 3, 2 and 1 response tokens, of one micro-batch."""
    examples = [example(5, 3), example(6, 3), example(3, 2)]
    first, second = update_rows(4, examples, [np.array([0, 1, 2])], [8], CPU_COSTS)
    assert [(row.client, row.number, row.length) for row in (first, second)] == [
        (4, 0, 8),
        (4, 1, 8),
    ]
    assert [[s.ident for s in row.segments] for row in (first, second)] == [[1], [0, 2]]
    assert [(row.positions, row.tokens) for row in (first, second)] == [(3, 6), (3, 8)]
    assert {s.weight for row in (first, second) for s in row.segments} == {1 / 6}
