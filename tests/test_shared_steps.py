"""Which steps experiments may share: those of the same code that encloses the same values."""

import copy
import functools

import numpy as np
import pytest

from feddpa_jax.adapters.mix import alone
from feddpa_jax.federated.penalty import proximal
from feddpa_jax.training.step import Objective
from tests.shared_steps import likeness, remembered


def test_objectives_made_anew_are_alike():
    def made(strength: float) -> Objective:
        return Objective(alone("local"), proximal("local", to="global", strength=strength))

    assert likeness(made(0.5)) == likeness(made(0.5)) != likeness(made(0.8))
    assert likeness(Objective(alone("local"))) != likeness(made(0.5))
    assert likeness(Objective(alone("local"))) != likeness(Objective(alone("global")))
    assert likeness(made(1)) != likeness(made(1.0))


@pytest.mark.parametrize("value", [{"a": 1}, [1], np.ones(3), object()])
def test_what_has_no_likeness_is_like_itself_alone(value: object):
    mixes = [functools.partial(dict, own=one) for one in (value, value, copy.copy(value))]
    assert likeness(mixes[0]) == likeness(mixes[1]) != likeness(mixes[2])


def test_defaults_are_a_part_of_a_function():
    def made(first: float, second: float):
        def mix(parts, weight=first, *, other=second):
            return parts

        return mix

    assert likeness(made(1.0, 2.0)) == likeness(made(1.0, 2.0))
    assert likeness(made(1.0, 2.0)) != likeness(made(3.0, 2.0))
    assert likeness(made(1.0, 2.0)) != likeness(made(1.0, 3.0))


def test_a_value_is_computed_once():
    calls: list[float] = []

    def half(number: float) -> float:
        calls.append(number)
        return number / 2

    once = remembered(half, lambda number: number)
    assert [once(3.0), once(4.0), once(3.0)] == [1.5, 2.0, 1.5] and calls == [3.0, 4.0]
