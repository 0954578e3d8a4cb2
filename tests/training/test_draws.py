"""What clients draw: NumPy's own numbers, bit for bit."""

import time

import numpy as np
import pytest

from feddpa_jax.training.draws import uniform

IDS = np.random.default_rng(0).integers(0, 2**32, 1500)


def one_by_one(words: list[list[int]]) -> np.ndarray:
    """The same by a generator for each."""
    return np.array([np.random.default_rng(own).random() for own in words])


@pytest.mark.parametrize(("seed", "number"), [(0, 0), (2**32 - 1, 99_999), (3, 17)])
def test_the_numbers_are_those_of_numpys_generators(seed: int, number: int):
    words = [[seed, number, ident, 1] for ident in [*IDS.tolist(), 0, 2**32 - 1]]
    found = uniform(seed, number, np.array([own[2] for own in words]), 1)
    assert found.tobytes() == one_by_one(words).tobytes()
    fewer = uniform(seed, IDS[:99], 3)
    assert fewer.tobytes() == one_by_one([[seed, i, 3] for i in IDS[:99].tolist()]).tobytes()


def test_every_word_counts_at_its_place():
    words = [(1, 2, 3, 4), (2, 1, 3, 4), (1, 2, 4, 3), (1, 2, 3, 5), (1, 2, 3, 0), (1, 2, 0, 3)]
    assert len({float(uniform(*own[:3], np.array(own[3]))[0]) for own in words}) == len(words)
    drawn = uniform(0, 0, np.arange(20_000), 1)
    assert drawn.min() >= 0.0 and drawn.max() < 1.0
    assert abs(drawn.mean() - 0.5) < 0.01 and len(set(drawn.tolist())) == len(drawn)


def test_a_hundred_thousand_clients_draw_at_once():
    began = time.process_time()
    uniform(0, 0, np.arange(100_000), 1)
    assert time.process_time() - began < 0.3
