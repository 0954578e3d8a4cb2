"""Rules on no curve: few settings, no more answers than needed, and what an evaluation has."""

import logging
from typing import Any, cast

import numpy as np
import pytest

from feddpa_jax.evaluate.modes import instance_weights
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.laboratory.choosing import by_client
from feddpa_jax.laboratory.findings import Split
from feddpa_jax.laboratory.given_up import References
from feddpa_jax.laboratory.grid import Grid
from feddpa_jax.laboratory.material import Material
from feddpa_jax.laboratory.off_curve import (
    find_exactly,
    off_curve_settings,
    score_exactly,
    score_settings,
    try_exactly,
)
from feddpa_jax.progress import Progress
from feddpa_jax.weighting.gathering import gather
from feddpa_jax.weighting.settings import WeightingSettings

PAPER = WeightingSettings(support=3, seed=0)
GRID = Grid(scales=(0.3, 0.6, 1.2), supports=(3,), layers=(2,))
FEW = Grid(scales=(0.3, 0.6, 1.2), supports=(3,), layers=(2,), few=True)


@pytest.fixture
def given(laboratory) -> Material:
    """Of the held-out examples the first stands for a made-up prompt; the others are 1 and 2."""
    tasks = Tasks(("add", "twice"), np.array([0, 1, 0]), np.eye(2, dtype=bool))
    own = [np.array([2]), np.array([1])]
    return Material(
        cast(Any, None),
        laboratory.collected,
        laboratory.scorer,
        np.ones(7, bool),
        Split(slice(0, 3), tasks),
        Split(laboratory.test, laboratory.tasks),
        by_client(own, slice(0, 1), slice(0, 3), ["anna", "ben"], ""),
    )


def test_rules_that_are_not_named_are_tried_with_few_settings():
    def tried(rule: str, grid: Grid) -> list[tuple[float, str]]:
        return [(own.scale, own.scales) for own in off_curve_settings(rule, grid, PAPER)]

    every = [(scale, side) for scale in (0.3, 0.6, 1.2) for side in ("local", "global")]
    assert tried("layerwise", GRID) == every
    # Of six the first, the last, and two between.
    assert tried("layerwise", FEW) == [every[at] for at in (0, 1, 3, 5)]
    # A rule that computes with the model itself: its defaults, unless it is given values.
    (learned,) = off_curve_settings("learned_layers", FEW, PAPER)
    assert not learned.parameters
    values = {"learned_layers": {"steps": [1, 2, 3]}}
    given = Grid((0.3,), (3,), (2,), few=True, parameters=values)
    assert len(off_curve_settings("learned_layers", given, PAPER)) == 3
    assert len(off_curve_settings("learned_layers", GRID, PAPER)) == 2


def test_settings_are_scored_on_what_is_needed(laboratory, given, caplog):
    """Two answers a client instead of three; the scores are those of all answers."""
    seen: list[Progress] = []
    with caplog.at_level(logging.INFO, "feddpa_jax"):
        settings, ((scores, parts),) = try_exactly(["layerwise"], FEW, given, PAPER, seen.append)
    assert seen[-1].finished and seen[-1].done == seen[-1].total == 2 * 4 * 4
    # 4 settings on 4 answers, then 2 clients' 7.
    assert "layerwise; 4 settings are run exactly, each on 4 answers" in caplog.text
    assert "30 answers to weigh and to score" in caplog.text
    share_CIZ = given.choosing.share_CIZ
    assert share_CIZ.any(axis=-1).sum() == 4
    for place in (0, 3):
        every = score_exactly(given, settings[place], given.choosing.rows)
        expected = [
            np.einsum("ci,ciz->z", every.scores_CI[name], share_CIZ)
            for name in ("nll", "exact_match")
        ]
        np.testing.assert_allclose(scores[place], expected, atol=1e-4)
    assert len(np.unique(scores[:, 0].round(5))) > 4
    alone = score_settings(given, settings[:1], by_instance=True)
    np.testing.assert_array_equal(scores[:1], alone.score_NXZ)
    assert parts.shape == (4, 2, 0)
    np.testing.assert_allclose(alone.part_NXI.sum(axis=-1), scores[:1, :, 0], rtol=1e-6)


def test_what_is_found_is_what_an_evaluation_has(laboratory, given):
    """By layer, by token, and learnt on held-out examples other than the one that is weighed."""
    asked, seen = laboratory.questions, []
    learned = WeightingSettings("learned_layers", parameters={"steps": 1, "rate": 1.0})
    tried = [WeightingSettings("tokenwise", support=3, scale=0.8), learned]
    found = find_exactly(
        *(given, [(own.rule, own) for own in tried], PAPER, References(1.0), seen.append)
    )
    assert seen[-1].finished and seen[-1].done == seen[-1].total == 2 * (2 * 2 * 7 + 2 * 4)
    for settings, finding in zip(tried, found, strict=True):
        assert finding.candidate.label == settings.rule
        weight_CJ = finding.candidate.weight_CJ
        whole = score_exactly(given, settings, given.test.rows)
        np.testing.assert_allclose(weight_CJ[:, given.test.rows], whole.weight_CI, atol=1e-5)
        expected = whole.scores_CI["nll"][0, [0, 3]].mean() + whole.scores_CI["nll"][1, 1]
        assert finding.test["nll"].p.value == pytest.approx(expected / 2, abs=1e-5)
        paper = score_exactly(given, PAPER, given.test.rows).scores_CI["nll"]
        minus = whole.scores_CI["nll"] - paper
        expected = (minus[0, [0, 3]].mean() + minus[1, 1]) / 2
        assert finding.minus_paper["nll"].p.value == pytest.approx(expected, abs=1e-5)
        # Against the local adapter alone, whose scores are among the collected ones.
        minus = whole.scores_CI["nll"] - laboratory.collected.nll_CJW[:, given.test.rows, -1]
        expected = (minus[0, [0, 3]].mean() + minus[1, 1]) / 2
        assert finding.given_up["nll"]["P"].value == pytest.approx(expected, abs=1e-5)
        # Against the global adapter alone, likewise.
        minus = whole.scores_CI["nll"] - laboratory.collected.nll_CJW[:, given.test.rows, 0]
        expected = (minus[0, [0, 3]].mean() + minus[1, 1]) / 2
        assert finding.minus_global["nll"].p.value == pytest.approx(expected, abs=1e-5)
        assert finding.separation is not None
    # Client 0 holds out 0 and 2, and weighs 0 by what it learns from 2 alone.
    held = [[asked.instances[2]], [asked.instances[1]]]
    evidence = gather(
        *(laboratory.scorer, asked.ids, asked.training, asked.instances[:1], asked.dreams),
        learned,
        held=held,
    )
    (alone, _) = instance_weights(evidence, learned).means().local_CI[:, 0]
    weight_J = found[1].candidate.weight_CJ[0]
    assert weight_J[0] == pytest.approx(alone, abs=1e-5)
    assert abs(weight_J[0] - weight_J[-1]) > 1e-4
