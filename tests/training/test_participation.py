"""Who takes part in a round: how many, and what the draw follows from."""

import numpy as np
import pytest

from feddpa_jax.training.participation import sample_participants

IDS = list(range(100, 140))


def drawn(ids=IDS, participation: float = 0.25, seed: int = 0, round_number: int = 0) -> list[int]:
    return sample_participants(
        ids, participation=participation, seed=seed, round_number=round_number
    ).tolist()


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
