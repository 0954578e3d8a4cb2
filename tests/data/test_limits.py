"""How many examples are read and held out: chosen by the seed, in the order of the data."""

from typing import Any

import pytest

from feddpa_jax.data.folders import load_federation
from feddpa_jax.data.sample import TASKS, write_sample
from feddpa_jax.types import UserError


def test_limits_choose_by_seed_and_keep_order(tmp_path):
    some = load_federation("sample", seed=1, max_train=10, max_test=3)
    whole = load_federation("sample", seed=1)
    assert whole == load_federation("sample", seed=1) != load_federation("sample", seed=0)
    for own, client in zip(some.clients, whole.clients, strict=True):
        places = [client.train.index(example) for example in own.train]
        assert len(places) == 10
        assert places == sorted(places) != list(range(10))
    assert len(some.test) == 3 * len(TASKS)
    assert load_federation("sample", seed=1, max_train=10, max_test=3) == some


def test_validation_is_held_out_of_what_a_client_trains_on():
    whole = load_federation("sample", seed=1, max_train=10)
    split = load_federation("sample", seed=1, max_train=10, validation=4)
    for before, after in zip(whole.clients, split.clients, strict=True):
        assert (len(after.train), len(after.validation)) == (6, 4)
        places = {e: i for i, e in enumerate(before.train)}
        assert len(places) == 10
        train, held = ([places[e] for e in part] for part in (after.train, after.validation))
        assert train == sorted(train) and held == sorted(held)
        assert sorted(train + held) == list(range(10))
        assert after.tasks == before.tasks
    assert load_federation("sample", seed=1, max_train=10, validation=4) == split
    other = load_federation("sample", seed=2, max_train=10, validation=4)
    assert [c.validation for c in other.clients] != [c.validation for c in split.clients]
    assert split.test == whole.test


def test_every_choice_follows_the_seed(tmp_path):
    """Of files, which the seed does not make: what max_train, max_test and validation choose."""
    write_sample(tmp_path / "data", 0)
    limits: dict[str, Any] = {"max_train": 10, "max_test": 3, "validation": 4}

    def chosen(seed: int):
        found = load_federation(str(tmp_path / "data"), seed=seed, **limits)
        return [c.train for c in found.clients], [c.validation for c in found.clients], found.test

    whole = load_federation(str(tmp_path / "data"))
    first, again, other = chosen(1), chosen(1), chosen(2)
    assert first == again
    for one, two in zip(first, other, strict=True):
        assert one != two
    # Clients and tasks are not all given the same places.
    places = [
        tuple(client.train.index(example) for example in own)
        for client, own in zip(whole.clients, first[0], strict=True)
    ]
    held = [
        tuple(client.train.index(example) for example in own)
        for client, own in zip(whole.clients, first[1], strict=True)
    ]
    assert len(set(places)) == len(set(held)) == 8
    tests = [whole.test.index(example) for example in first[2]]
    assert tests == sorted(tests)
    assert len({tuple(place % 24 for place in tests[k : k + 3]) for k in range(0, 24, 3)}) > 4
    for limit, count in (("max_train", 96), ("max_test", 24)):
        given: dict[str, Any] = {limit: count}
        exact = load_federation(str(tmp_path / "data"), seed=1, **given)
        assert exact == whole


def test_what_is_held_out_follows_the_seed_and_the_name(tmp_path):
    """Of files, and without `max_train`, which chooses by both as well."""
    write_sample(tmp_path / "data", 0)
    whole = load_federation(str(tmp_path / "data"))

    def held(seed: int) -> list[tuple[int, ...]]:
        found = load_federation(str(tmp_path / "data"), seed=seed, validation=4)
        pairs = zip(whole.clients, found.clients, strict=True)
        return [tuple(map(before.train.index, after.validation)) for before, after in pairs]

    assert held(1) == held(1)
    assert all(one != two for one, two in zip(held(1), held(2), strict=True))
    assert len(set(held(1))) == 8


def test_a_validation_in_the_datas_order(tmp_path):
    """Of 60 examples 40, which a set of numbers would not keep in order."""
    whole = load_federation("sample", seed=1, max_train=90)
    split = load_federation("sample", seed=1, max_train=90, validation=40)
    for before, after in zip(whole.clients, split.clients, strict=True):
        held = [before.train.index(example) for example in after.validation]
        assert held == sorted(held) and len(held) == 40


def test_validation_must_leave_something_to_train_on():
    with pytest.raises(UserError, match=r"data\.validation: client .* below 10"):
        load_federation("sample", seed=1, max_train=10, validation=10)
