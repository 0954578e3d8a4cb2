"""The work of a round: what it depends on, and that no client is left out or misplaced."""

import dataclasses

import numpy as np

import feddpa_jax.data.rounds as rounds_module
from feddpa_jax.data.rounds import TrainingData
from feddpa_jax.types import TokenizedExample


def make_data(**changes) -> TrainingData:
    draw = np.random.default_rng(0)

    def example(length: int) -> TokenizedExample:
        return TokenizedExample(draw.integers(1, 99, length).astype(np.int32), length - 2)

    # The last client's examples are five times as long as the others'.
    lengths = [6] * 19 + [30]
    data = TrainingData(
        names=tuple(f"c{k}" for k in range(20)),
        examples=tuple(tuple(example(n) for _ in range(3)) for n in lengths),
        seed=0,
        epochs=1,
        batch_size=2,
        micro_batch_size=2,
        block_tokens=64,
    )
    return dataclasses.replace(data, **changes)


def test_a_client_that_comes_late_still_fits(monkeypatch):
    """The block shape is chosen from a sample that need not show every client."""
    monkeypatch.setattr(rounds_module, "SAMPLED_UPDATES", 2)
    data = make_data(participation=0.05)
    shapes = data.shapes(200)
    seen = set()
    for number in range(200):
        work = data.round(number, shapes)
        seen.update(work.participants.tolist())
        for chunk in work.chunks("global"):
            tokens = sum(block.real_tokens for block in chunk.blocks)
            own = data.examples[work.participants[0]]
            assert tokens == sum(len(e.tokens_T) for e in own)
    assert 19 in seen


def test_updates_depend_on_seed_round_client_and_phase_alone():
    data = make_data()

    def order(data, client, number, phase):
        return np.concatenate([m for u in data.updates_of(client, number, phase) for m in u])

    many = {tuple(order(data, c, r, p)) for c in range(9) for r in range(9) for p in ("a", "b")}
    assert len(many) == 6  # All orders of three examples turn up.
    turned = dataclasses.replace(data, names=data.names[::-1], examples=data.examples[::-1])
    for client in range(20):
        np.testing.assert_array_equal(
            order(data, client, 4, "local"), order(turned, 19 - client, 4, "local")
        )
    fixed = make_data(shuffle=False)
    np.testing.assert_array_equal(order(fixed, 3, 1, "local"), [0, 1, 2])


def test_chunks_split_the_participants():
    data = make_data(clients_per_step=8)
    chunks = list(data.round(0, data.shapes(1)).chunks("global"))
    assert [len(chunk.members) for chunk in chunks] == [8, 8, 4]
    assert [len(chunk.id_C) for chunk in chunks] == [8, 8, 8]
    assert chunks[2].total_C.tolist() == [2, 2, 2, 2, 0, 0, 0, 0]
    assert [name for chunk in chunks for name in chunk.names] == list(data.names)


def test_shards_share_the_work():
    data = make_data(shards=4)
    (chunk,) = data.round(0, data.shapes(1)).chunks("global")
    assert len(chunk.id_C) == 20 and sorted(chunk.slots.tolist()) == list(range(20))
    by_slot = {int(slot): int(c) for slot, c in zip(chunk.slots, chunk.members, strict=True)}
    load = [sum(data.tokens(by_slot[s * 5 + place]) for place in range(5)) for s in range(4)]
    assert max(load) == load[0] == 30 * 3 + 4 * 6 * 3  # the long one, and four short ones
    real = 0
    for block in chunk.blocks:
        rows = block.rows
        assert len(rows.tokens_BT) % 4 == 0
        assert rows.client_B.max() < 5 and rows.row_P.max() < len(rows.tokens_BT) // 4
        real += block.real_tokens
    assert real == sum(map(data.tokens, range(20)))


def test_a_sample_of_shards_is_the_same_part_of_the_run(monkeypatch):
    """Shards work side by side: with fewer of them in the sample it covers no less of the run."""
    own = make_data().examples[0]
    data = make_data(shards=4, examples=(own,) * 20)
    shares = []

    def choose(sample, *, share, **others):
        shares.append((len(sample), share))
        return ()

    monkeypatch.setattr(rounds_module, "choose_shapes", choose)
    for most in (20, 10):
        monkeypatch.setattr(rounds_module, "SAMPLED_CLIENTS", most)
        data.shapes(50)
    (every, whole), (some, part) = shares
    assert (every, some) == (4, 2)
    assert 0 < part == whole < 1
