"""The work of a round: what it depends on, and that no client is left out or misplaced."""

import dataclasses

import numpy as np

import feddpa_jax.training.rounds as rounds_module
from feddpa_jax.training.participation import Availability
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.types import TokenizedExample, client_id


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


def test_shuffling_and_participation_follow_the_seed():
    """Another seed, round, client or phase: another order; the same ones: the same."""
    lengths = np.full(12, 6)
    examples = tuple(TokenizedExample(np.arange(n, dtype=np.int32), 2) for n in lengths)
    data = make_data(examples=(examples,) * 20, participation=0.25)
    other = dataclasses.replace(data, seed=1)

    def order(data, client=0, number=0, phase="global"):
        return tuple(np.concatenate([m for u in data.updates_of(client, number, phase) for m in u]))

    assert order(data) == order(dataclasses.replace(data))
    seen = [order(data), order(other), order(data, client=1), order(data, number=1)]
    seen.append(order(data, phase="local"))
    assert len(set(seen)) == 5
    assert all(sorted(each) == list(range(12)) for each in seen)
    draws = [tuple(d.participants(r).tolist()) for d in (data, other) for r in (0, 1)]
    assert len(set(draws)) == 4
    assert tuple(data.participants(0).tolist()) == draws[0]


def test_only_clients_that_are_available_take_part():
    """A quarter of a day of four rounds: each client is there once a day."""
    data = make_data(availability=Availability("daily", share=0.25, period=4))
    days = [[c for n in range(4) for c in data.participants(4 * day + n)] for day in range(2)]
    assert sorted(days[0]) == list(range(20)) and days[0] == days[1]
    assert all(len(data.participants(number)) < 20 for number in range(4))


def test_a_round_says_who_takes_part_with_how_many_examples():
    own = [(make_data().examples[0][0],) * (c + 1) for c in range(20)]
    data = make_data(examples=tuple(own), participation=0.25)
    drawn = data.round(3, ())
    assert drawn.number == 3
    assert drawn.participants.tolist() == data.participants(3).tolist()
    assert drawn.examples.tolist() == [c + 1 for c in drawn.participants]
    everybody = data.round(3, (), everybody=True)
    assert everybody.participants.tolist() == list(range(20))
    assert everybody.examples.tolist() == list(range(1, 21))


def test_a_chunk_by_hand():
    """Three of five clients on two shards, of 1, 3 and 2 updates in an epoch, two epochs."""
    counts = {"a": 1, "b": 9, "c": 6, "d": 9, "e": 4}
    one = TokenizedExample(np.arange(5, dtype=np.int32), 3)
    data = TrainingData(
        names=tuple(counts),
        examples=tuple((one,) * count for count in counts.values()),
        seed=0,
        epochs=2,
        batch_size=4,
        micro_batch_size=2,
        shards=2,
    )
    members = np.array([0, 1, 2], np.int32)
    (chunk,) = data.chunks(members, 0, "local", (BlockShape(2, 8, 16),))
    assert (chunk.names, chunk.phase, chunk.members.tolist()) == (
        ("a", "b", "c"),
        "local",
        [0, 1, 2],
    )
    # The longest goes first, to shard 0; then the next to shard 1, and the last one to it too.
    assert chunk.slots.tolist() == [3, 0, 2]
    assert chunk.total_C.tolist() == [6, 0, 4, 2]
    ids = [client_id(name) for name in "bca"]
    assert chunk.id_C.tolist() == [ids[0], 0, ids[1], ids[2]]
    blocks = list(chunk.blocks)
    assert np.sum([block.ends_C for block in blocks], axis=0).tolist() == [6, 0, 4, 2]
    assert sum(block.real_tokens for block in blocks) == 2 * 5 * (1 + 9 + 6)
    assert {block.computed_tokens for block in blocks} == {2 * 2 * 8}
    assert data.tokens(1) == 2 * 9 * 5
    assert [data.slots(n) for n in (1, 2, 3)] == [2, 2, 4]
    assert [own.phase for own in data.round(0, (BlockShape(2, 8, 16),)).chunks("local")] == [
        "local"
    ]
    # Micro-batches of two in batches of four; the last update of an epoch has one example.
    sizes = [[len(micro) for micro in update] for update in data.updates_of(1, 0, "local")]
    assert sizes == [[2, 2], [2, 2], [1]] * 2


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
