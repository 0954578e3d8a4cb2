"""Which training examples stand for a client: drawn once or for every instance."""

import numpy as np
import pytest

from feddpa_jax.weighting.support import draw_support, draw_support_per_instance


def test_support_is_drawn_once_or_anew():
    once = draw_support(300, 5, seed=0, client=7)
    assert len(set(once.tolist())) == 5
    np.testing.assert_array_equal(once, draw_support(300, 5, seed=0, client=7))
    assert not np.array_equal(once, draw_support(300, 5, seed=1, client=7))
    assert not np.array_equal(once, draw_support(300, 5, seed=0, client=8))
    anew = draw_support_per_instance(300, 5, 40, seed=0, client=7)
    assert anew.shape == (40, 5)
    assert len({tuple(row) for row in anew.tolist()}) == 40
    np.testing.assert_array_equal(
        anew[:10], draw_support_per_instance(300, 5, 10, seed=0, client=7)
    )
    assert not np.array_equal(anew, draw_support_per_instance(300, 5, 40, seed=1, client=7))
    assert not np.array_equal(anew, draw_support_per_instance(300, 5, 40, seed=0, client=8))


@pytest.mark.parametrize("count", [1, 5, 7])
def test_support_is_drawn_without_replacement(count):
    """As many as there are: each once, and not in the order that they lie in."""
    for client in range(5):
        drawn = draw_support(count, count, seed=0, client=client).tolist()
        assert sorted(drawn) == list(range(count))
        for row in draw_support_per_instance(count, count, 4, seed=0, client=client).tolist():
            assert sorted(row) == list(range(count))
    orders = {tuple(draw_support(7, 7, seed=0, client=client).tolist()) for client in range(9)}
    assert len(orders) > 1


def test_of_fewer_than_the_support_some_stand_twice():
    """Five of three: two of them twice, none more often."""
    for client in range(5):
        drawn = draw_support(3, 5, seed=0, client=client)
        assert sorted(np.bincount(drawn, minlength=3).tolist()) == [1, 2, 2]
