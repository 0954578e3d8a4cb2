"""How weights tell own instances from foreign ones, by hand and against every pair."""

import numpy as np
import pytest

from feddpa_jax.laboratory.separation import Separation, separate


def test_by_hand():
    """Client 0: 2 of 4 pairs right and a tie; client 1: none right. Means are over clients."""
    own_CI = np.array([[True, True, False, False], [False, False, False, True]])
    weight_CI = np.array([[0.5, 0.1, 0.1, 0.3], [0.9, 0.6, 0.3, 0.0]])
    assert separate(weight_CI, own_CI) == pytest.approx(
        ((0.3 + 0.0) / 2, (0.2 + 0.6) / 2, (2.5 / 4 + 0.0) / 2)
    )


def test_every_pair():
    draw = np.random.default_rng(0)
    own_CI = draw.random((3, 40)) < 0.3
    weight_CI = draw.integers(0, 6, (3, 40)) / 5
    areas = [
        np.mean(
            [(a > b) + 0.5 * (a == b) for a in weight_I[own_I] for b in weight_I[~own_I]],
        )
        for weight_I, own_I in zip(weight_CI, own_CI, strict=True)
    ]
    assert separate(weight_CI, own_CI).auc == pytest.approx(np.mean(areas), abs=1e-12)
    swapped = separate(1 - weight_CI, own_CI).auc
    assert swapped == pytest.approx(1 - np.mean(areas), abs=1e-12)


def test_layers_and_clients_without_either_kind():
    own_CI = np.array([[True, True], [True, False]])
    by_layer = np.array([[[0.2, 0.4], [0.6, 0.8]], [[1.0, 1.0], [0.0, 0.4]]])
    assert separate(by_layer, own_CI) == pytest.approx(((0.5 + 1.0) / 2, 0.2, 1.0))
    assert separate(np.ones((1, 2)), own_CI[:1]) == Separation(1.0, None, None)
    assert separate(np.ones((1, 2)), own_CI[:1]).cells() == ["1.00", "–", "–"]
