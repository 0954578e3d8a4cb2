"""Who takes part in a round: how many, and what the draw follows from."""

import numpy as np
import pytest

from feddpa_jax.training.participation import (
    ALWAYS,
    Availability,
    available,
    returning,
    sample_participants,
)

IDS = list(range(100, 140))


MANY = np.random.default_rng(0).integers(0, 2**32, 2000)
DAY = Availability("daily", share=0.3, period=10)
CHAIN = Availability("markov", share=0.3, period=5)


def drawn(
    ids=IDS, participation: float = 0.25, seed: int = 0, round_number: int = 0, **more
) -> list[int]:
    return sample_participants(
        ids, participation=participation, seed=seed, round_number=round_number, **more
    ).tolist()


def states(availability: Availability, rounds: range, seed: int = 0) -> np.ndarray:
    """Whether each client is available: bool [rounds, C]."""
    return np.array([available(MANY, availability, seed, number) for number in rounds])


@pytest.mark.parametrize(
    ("clients", "participation", "count"),
    # 0.29 * 100 is 28.999999999999996 in floating point.
    [(40, 0.25, 10), (100, 0.29, 29), (8, 0.99, 7), (8, 1.0, 8), (8, 0.1, 1), (3, 0.5, 1)],
)
def test_how_many_take_part(clients: int, participation: float, count: int):
    found = drawn(list(range(clients)), participation)
    assert len(found) == len(set(found)) == count
    assert found == sorted(found)


def test_another_seed_or_round_draws_others_and_the_same_ones_draw_the_same():
    first = drawn()
    assert drawn() == first
    others = [drawn(seed=seed) for seed in range(1, 6)]
    others += [drawn(round_number=number) for number in range(1, 6)]
    assert len({tuple(found) for found in [first, *others]}) == 11


def test_the_draw_follows_the_clients_ids_not_their_places():
    named = {IDS[place] for place in drawn()}
    assert {IDS[::-1][place] for place in drawn(IDS[::-1])} == named
    assert {(IDS[1:] + IDS[:1])[place] for place in drawn(IDS[1:] + IDS[:1])} == named
    assert np.asarray(drawn([ident + 1000 for ident in IDS])).tolist() != drawn()


@pytest.mark.parametrize("participation", [0.1, 0.5])
def test_the_draw_is_that_of_a_generator_for_each_client(participation: float):
    """The bits of the first versions, which made these generators one by one."""
    for seed, number in ((0, 0), (5, 3), (2**32 - 1, 9)):
        draws = [np.random.default_rng([seed, number, ident, 1]).random() for ident in IDS]
        smallest = np.sort(np.argsort(draws)[: int(participation * len(IDS))])
        assert drawn(IDS, participation, seed, number) == smallest.tolist()


def test_a_number_of_clients_takes_part():
    assert drawn(participation=1.0, cohort=10) == drawn(participation=0.25)
    assert drawn(participation=1.0, cohort=40) == list(range(40))


def test_a_day_is_the_same_every_day_and_every_client_has_its_own():
    day = states(DAY, range(10))
    np.testing.assert_array_equal(day, states(DAY, range(10, 20)))
    assert (day.sum(axis=0) == 3).all()
    # On for three rounds on end, so each comes once.
    assert ((day & ~np.roll(day, 1, axis=0)).sum(axis=0) == 1).all()
    assert abs(day.mean(axis=1) - 0.3).max() < 0.05
    assert states(DAY._replace(share=0.01), range(10)).sum(axis=0).tolist() == [1] * len(MANY)
    assert not np.array_equal(day, states(DAY, range(10), seed=1))


def test_a_chain_turns_on_and_off_with_its_chances():
    """Off to on a / T = 0.06, on to off (1 - a) / T = 0.14; a = 0.3 of the clients are on."""
    on = states(CHAIN, range(60))
    before, after = on[:-1], on[1:]
    assert abs((before & ~after).sum() / before.sum() - 0.14) < 0.01
    assert abs((~before & after).sum() / (~before).sum() - 0.06) < 0.005
    assert abs(on[0].mean() - 0.3) < 0.04 and abs(on[-1].mean() - 0.3) < 0.04
    # Of clients that were on 20 rounds ago, not many more are on than of the others.
    assert abs(on[50][on[30]].mean() - 0.3) < 0.06


def test_a_chain_of_period_one_draws_every_round_anew():
    on = states(CHAIN._replace(period=1), range(30))
    assert abs(on[1:][on[:-1]].mean() - 0.3) < 0.02


@pytest.mark.parametrize("availability", [DAY, CHAIN])
def test_only_available_clients_take_part(availability: Availability):
    ids = MANY.tolist()
    on = set(np.flatnonzero(available(MANY, availability, 0, 7)).tolist())
    assert drawn(ids, 1.0, 0, 7, availability=availability) == sorted(on)
    found = drawn(ids, 1.0, 0, 7, availability=availability, cohort=64)
    assert len(found) == 64 and set(found) <= on
    # Those of the smallest draws, as without an availability.
    order = drawn(ids, 1.0, 0, 7, cohort=500)
    many = drawn(ids, 1.0, 0, 7, availability=availability, cohort=500)
    assert len(many) == 500 and set(order) & on <= set(many) <= on
    turned = drawn(ids[::-1], 1.0, 0, 7, availability=availability, cohort=64)
    assert {ids[::-1][place] for place in turned} == {ids[place] for place in found}


def test_where_nobody_is_available_the_first_of_the_draw_takes_part():
    rarely = CHAIN._replace(share=1e-9)
    assert not available(np.array(IDS), rarely, 0, 0).any()
    assert drawn(availability=rarely) == drawn(participation=1.0, cohort=1)


def test_who_drops_out_follows_from_seed_round_and_client():
    members, every = np.arange(0, len(MANY), 2), MANY.tolist()

    def back(
        ids: list[int] = every, members=members, seed=0, round_number=0, dropout=0.2
    ) -> set[int]:
        found = returning(members, ids, dropout=dropout, seed=seed, round_number=round_number)
        return {int(ids[place]) for place in found}

    found = back()
    assert found < {int(MANY[place]) for place in members}
    assert abs(len(found) / len(members) - 0.8) < 0.05
    assert back(MANY[::-1].tolist(), len(MANY) - 1 - members[::-1]) == found
    # Whoever else takes part does not matter.
    assert back(members=members[:100]) == found & {int(MANY[place]) for place in members[:100]}
    assert len({frozenset(own) for own in (found, back(seed=1), back(round_number=1))}) == 3
    assert len(back(dropout=0.0)) == len(members)
    # No more of the ones that the draw takes first.
    first = returning(np.array(drawn(every)), every, dropout=0.2, seed=0, round_number=0)
    assert abs(len(first) / 500 - 0.8) < 0.07


def test_always_is_the_default():
    assert available(np.array(IDS), ALWAYS, 0, 0).all()
