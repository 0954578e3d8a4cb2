"""`keep`: the right pick is known; intervals are those of the summaries; too little is refused."""

import itertools
from typing import Any, cast

import numpy as np
import pytest

from feddpa_jax.evaluate.estimating import summarize
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.laboratory import off_curve
from feddpa_jax.laboratory.choosing import Choosing, by_client, pooled, shares_of
from feddpa_jax.laboratory.keeping import Parts, best_that_keep, check_enough
from feddpa_jax.laboratory.material import Material
from feddpa_jax.laboratory.off_curve import Exact, score_settings
from feddpa_jax.types import UserError
from feddpa_jax.weighting.settings import WeightingSettings

NAMES = ("anna", "ben", "carl", "dora")
EACH = 6
DRAW = np.random.default_rng(0)
# What instances differ by, which all settings share: it has no part in a paired difference.
COMMON_I = DRAW.normal(3.0, 2.0, len(NAMES) * EACH)
NOISE_I = DRAW.normal(0.0, 1.0, len(COMMON_I))
NOISE_I -= NOISE_I.mean()


def found(*rows: tuple[str, float, float, float], metric: str = "nll", by=("nll",)):
    """The pick among settings, each with a rule, its loss on P, how uncertain that is, and TTP."""
    settings = [WeightingSettings(rule, scale=n / 10) for n, (rule, *_) in enumerate(rows)]
    # In exact match, of 0 to 100, 24 answers that agree leave 12.5 points of doubt.
    sign = 1 if metric == "nll" else -100
    score_NI = np.array([COMMON_I + sign * (loss + off * NOISE_I) for _, loss, off, _ in rows])
    share_I = np.full(len(COMMON_I), 1 / len(COMMON_I))
    x = int(metric != "nll")
    part_NXI = np.zeros((len(rows), 2, len(COMMON_I)))
    part_NXI[:, x] = score_NI * share_I
    score_NXZ = np.zeros((len(rows), 2, 2))
    score_NXZ[:, x, 0] = part_NXI[:, x].sum(axis=-1)
    score_NXZ[:, x, 1] = [sign * ttp for *_, ttp in rows]
    parts = Parts(part_NXI, share_I, np.repeat(np.arange(len(NAMES)), EACH), NAMES)
    kept = best_that_keep(settings, score_NXZ, parts, by)
    return [settings.index(one) for one in kept.best], settings.index(kept.reference), kept.losing


@pytest.mark.parametrize("metric", ["nll", "exact_match"])
def test_the_best_ttp_of_what_loses_nothing_for_sure(metric):
    rows = (
        ("l2", 0.00, 0.0, 3.0),  # the best P
        ("l2", 0.20, 0.1, 1.0),  # a better TTP, but 0.20 +- 0.04 on P
        ("l2", 0.20, 1.0, 2.0),  # 0.20 +- 0.4: no sure loss, and a better TTP than the best P's
        ("l2", 0.10, 1.0, 2.5),
    )
    assert found(*rows, metric=metric, by=(metric,)) == ([2], 0, ())


def test_a_loss_that_all_instances_share_is_sure():
    assert found(("l2", 0.0, 0.0, 3.0), ("l2", 0.001, 0.0, 1.0)) == ([0], 0, ())
    # The same P everywhere is none.
    assert found(("l2", 0.0, 0.0, 3.0), ("l2", 0.0, 0.0, 1.0)) == ([1], 0, ())


def test_the_reference_is_the_best_of_all_rules():
    rows = (
        ("gate", 0.5, 0.1, 1.0),  # this rule loses with every setting: the best P of it
        ("gate", 0.7, 0.1, 0.5),
        ("l2", 0.0, 0.0, 3.0),
        ("cosine", 0.1, 1.0, 2.0),
        ("pearson", 0.4, 0.1, 2.5),
    )
    # By TTP among those that keep P, then by P.
    assert found(*rows) == ([3, 2, 4, 0], 2, ("pearson", "gate"))


def test_a_rule_without_finite_scores():
    with pytest.raises(UserError, match="rules: gate gives similarities that are not finite"):
        found(("l2", 0.0, 0.0, 1.0), ("gate", np.nan, 0.0, 1.0))


def parts_of(choosing: Choosing, *scores_CI: np.ndarray) -> Parts:
    share_CI = choosing.share_CIZ[..., 0].astype(np.float64)
    part_NI = np.array([(own * share_CI).sum(axis=0) for own in scores_CI])
    both_NXI = np.stack([part_NI, 100 * part_NI], axis=1)
    return Parts(both_NXI, share_CI.sum(axis=0), choosing.group_I, choosing.names)


def test_intervals_are_those_of_paired_summaries():
    """Pooled: two clients share a task, one has two tasks, one task is nobody's own."""
    own_CK = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], bool)
    tasks = Tasks(("a", "b", "c", "d"), np.repeat(np.arange(4), [5, 9, 8, 3]), own_CK)
    one_CI, other_CI = DRAW.gamma(2.0, size=(2, 3, 25))
    parts = parts_of(pooled(tasks, slice(0, 25)), one_CI, other_CI)
    expected = summarize(one_CI - other_CI, tasks, paired=True).p.over_instances
    told = parts.difference(0, 1, "nll")
    assert expected.bounded
    assert [told.value, told.low, told.high] == pytest.approx(
        [expected.value, expected.low, expected.high], rel=1e-5
    )
    whole = summarize(100 * (one_CI - other_CI), tasks, span=100.0, paired=True).p.over_instances
    told = parts.difference(0, 1, "exact_match")
    assert [told.low, told.high] == pytest.approx([whole.low, whole.high], rel=1e-5)


def test_a_clients_examples_are_its_own_group():
    own = [np.arange(2 + 6 * c, 8 + 6 * c) for c in range(4)]
    choosing = by_client(own, slice(0, 2), slice(0, 26), NAMES, "")
    one_CI, other_CI = DRAW.gamma(2.0, size=(2, 4, 26))
    minus_CI = (one_CI - other_CI)[:, 2:]
    tasks = Tasks(NAMES, np.repeat(np.arange(4), 6), np.eye(4, dtype=bool))
    expected = summarize(minus_CI, tasks, paired=True).p.over_instances
    told = parts_of(choosing, one_CI, other_CI).difference(0, 1, "nll")
    assert [told.value, told.low, told.high] == pytest.approx(
        [expected.value, expected.low, expected.high], rel=1e-5
    )


def test_rules_on_no_curve_tell_instances_too(monkeypatch):
    """What they add to P is the same, from scores of new passes."""
    tasks = Tasks(("a", "b"), np.array([0, 0, 1]), np.eye(2, dtype=bool))
    choosing = pooled(tasks, slice(0, 3))
    scores_CI = {"nll": DRAW.random((2, 3)), "exact_match": 100 * DRAW.random((2, 3))}
    monkeypatch.setattr(
        off_curve, "score_exactly", lambda *given, **told: Exact(scores_CI, np.zeros(0))
    )
    given = Material(*cast(Any, (*[None] * 6, choosing)))
    settings = [WeightingSettings("layerwise")] * 2
    told = score_settings(given, settings, by_instance=True)
    assert told.part_NXI.shape == (2, 2, 3)
    np.testing.assert_allclose(told.part_NXI.sum(axis=-1), told.score_NXZ[..., 0])
    nll = scores_CI["nll"]
    expected_I = [nll[0, 0] / 4, nll[0, 1] / 4, nll[1, 2] / 2]
    np.testing.assert_allclose(told.part_NXI[1, 0], expected_I)
    plain = score_settings(given, settings, by_instance=False)
    assert plain.part_NXI.shape == (2, 2, 0)
    np.testing.assert_array_equal(plain.score_NXZ, told.score_NXZ)


def held(*counts: int) -> Choosing:
    ends = np.cumsum([2, *counts])
    own = [np.arange(low, high) for low, high in itertools.pairwise(ends)]
    return by_client(own, slice(0, 2), slice(0, int(ends[-1])), NAMES, "")


def test_too_few_for_an_interval():
    check_enough(held(5, 5, 5, 5))
    # A client that held nothing out has no part in P.
    check_enough(held(10, 0, 10, 0))
    with pytest.raises(UserError, match=r"^keep: client 'ben' has 3 held-out examples, .* 4 of"):
        check_enough(held(10, 3, 10, 0))
    with pytest.raises(UserError, match=r"^keep: 16 held-out .* needs 20; train with a larger"):
        check_enough(held(4, 4, 4, 4))
    tasks = Tasks(("a", "b"), np.repeat([0, 1], [18, 3]), np.eye(2, dtype=bool))
    with pytest.raises(UserError, match="keep: task 'b' has 3"):
        check_enough(pooled(tasks, slice(0, 21)))
    nobodys = Tasks(("a",), np.zeros(30, int), np.zeros((2, 1), bool))
    assert not shares_of(nobodys)[..., 0].any()
    with pytest.raises(UserError, match="keep: no held-out example counts for P"):
        check_enough(pooled(nobodys, slice(0, 30)))
