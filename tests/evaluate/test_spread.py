"""Variances and ends of intervals, by hand and by brute force."""

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import ttest_1samp, ttest_ind

from feddpa_jax.evaluate.spread import Spread, over_both

RNG = np.random.default_rng(0)


def symmetric(count: int) -> np.ndarray:
    """Values without skewness."""
    half = RNG.normal(size=count // 2)
    return np.concatenate([half, -half]) + 3.0


def test_a_mean_has_the_interval_of_the_t_test():
    values = symmetric(12)
    below, above = Spread.of(values).reach()
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (values.mean() - below, values.mean() + above) == pytest.approx(expected, rel=1e-9)


def test_a_difference_of_two_means_has_that_of_welch():
    """Satterthwaite's degrees of freedom of two parts are Welch's."""
    one, other = symmetric(6), 4 * symmetric(20)
    both = Spread.sum([Spread.of(one), Spread.of(other)])
    expected = ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    (below, above), gap = both.reach(), one.mean() - other.mean()
    assert (gap - below, gap + above) == pytest.approx(expected, rel=1e-9)


def test_moments_by_hand():
    # 0, 0, 0, 4: mean 1, squares 1 + 1 + 1 + 9 = 12, cubes -1 - 1 - 1 + 27 = 24.
    found = Spread.of(np.array([0.0, 0, 0, 4]))
    # 12 / 3 / 4; 1 / 3; unbiased third moment 24 * 4 / (3 * 2) = 16, of a mean of 4 16 / 16.
    assert (found.variance, found.doubt, found.third) == pytest.approx((1.0, 1 / 3, 1.0))
    assert found.freedom() == pytest.approx(3)
    # The short side is t's; the long one has sd * skewness / 6 * (1 + 2 t^2) more, which is 1 / 6.
    t = stdtrit(3, 0.975)
    assert found.reach() == pytest.approx((t, t + (1 + 2 * t**2) / 6))
    mirrored = Spread.of(np.array([0.0, 0, 0, -4]))
    assert mirrored.reach() == pytest.approx((t + (1 + 2 * t**2) / 6, t))
    assert found.reach(5.0)[0] == 5.0 and found.reach(5.0)[1] > 5


def test_what_is_only_rounding_is_no_variance():
    assert Spread.of(np.array([0.1 + 0.2, 0.3, 0.3])).variance == 0
    flat = Spread.of(np.full(5, 1 / 3))
    assert flat.reach() == (0, 0) and flat.reach(0.5) == (0.5, 0.5)
    assert Spread.of(np.array([1e-9, 2e-9])).variance > 0


def test_a_spread_scales_as_its_values_do():
    values = RNG.gamma(1, 1, 9)
    for name, part in vars(Spread.of(3 * values)).items():
        assert getattr(Spread.of(values).scaled(3), name) == pytest.approx(part)


def test_two_ways_are_no_less_than_either_and_both_is_taken_off_once():
    clients, instances = Spread.of(symmetric(8)), Spread.of(2 * symmetric(10))
    none = over_both(clients, instances, np.asarray(0.0))
    assert none.variance == pytest.approx(clients.variance + instances.variance)
    some = over_both(clients, instances, 0.5 * clients.variance)
    assert some.variance == pytest.approx(0.5 * clients.variance + instances.variance)
    # All of the instances' variance is in the clients' too; and more than all, by chance.
    for cells in (instances.variance, 2 * instances.variance):
        most = max(clients.variance, instances.variance)
        assert over_both(clients, instances, cells).variance == pytest.approx(most)


def test_two_ways_of_simulated_effects_are_unbiased():
    """The variance of a mean of client + instance + cell is what is estimated, over many draws."""
    worlds, clients, instances = 4000, 6, 9
    scores = (
        RNG.normal(0, 0.5, (worlds, clients, 1))
        + RNG.normal(0, 1.0, (worlds, 1, instances))
        + RNG.normal(0, 2.0, (worlds, clients, instances))
    )
    both = Spread.of(scores).variance.sum(axis=1) / clients**2
    found = over_both(Spread.of(scores.mean(axis=2)), Spread.of(scores.mean(axis=1)), both)
    # 0.25 / 6 + 1 / 9 + 4 / 54 = 0.227; a sixth of the instances' own 1 / 9 is taken off too much.
    assert found.variance.mean() == pytest.approx(0.227, rel=0.15)
    assert scores.mean(axis=(1, 2)).var() == pytest.approx(0.227, rel=0.1)
