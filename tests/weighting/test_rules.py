"""Weighting rules by hand, and their orientation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.types import UserError
from feddpa_jax.weighting.evidence import Evidence
from feddpa_jax.weighting.rule import RULES, least_support
from feddpa_jax.weighting.rules.calibrated import (
    calibrated,
    calibrated_hard,
    calibrated_likelihood,
    entropy,
    likelihood_ratio,
)
from feddpa_jax.weighting.rules.gate import gate
from feddpa_jax.weighting.rules.similarity import (
    centred,
    cosine,
    l2,
    layerwise,
    mahalanobis,
    nearest,
    nearest_3,
    pearson,
    whitened,
)
from feddpa_jax.weighting.weights import make_weighting
from tests.weighting.small_evidence import EVIDENCE, QUERY_BD, SUPPORT_BMD


def test_cosine_by_hand():
    # Row 0: both supports at 45 degrees, cos = 1 / sqrt 2. Row 1: (1 - 1) / 2 = 0.
    np.testing.assert_allclose(cosine(QUERY_BD, SUPPORT_BMD), [0.5**0.5, 0.0], atol=1e-6)


def test_one_support_does_not_stand_for_all():
    with pytest.raises(AssertionError, match="assert_shape failed"):
        cosine(QUERY_BD, SUPPORT_BMD[:1])


def test_pearson_by_hand():
    # x = (1, 2, 3) and y = (2, 4, 6): 1; y = (3, 2, 1): -1; mean 0. Shifts do not matter.
    query = jnp.array([[1.0, 2.0, 3.0]])
    support = jnp.array([[[2.0, 4.0, 6.0], [3.0, 2.0, 1.0]]])
    np.testing.assert_allclose(pearson(query, support), [0.0], atol=1e-6)
    np.testing.assert_allclose(pearson(query + 9, support[:, :1]), [1.0], atol=1e-6)


def test_l2_by_hand():
    # Differences (0, 0) and (3, 3): root mean squares 0 and 3; (1 + 1/4) / 2 = 0.625.
    query = jnp.array([[1.0, 1.0]])
    support = jnp.array([[[1.0, 1.0], [4.0, 4.0]]])
    np.testing.assert_allclose(l2(query, support), [0.625], atol=1e-6)


def test_nearest_by_hand():
    # Row 0: cosines 1/sqrt 2 twice; row 1: 1 and -1. Two support examples: three nearest are two.
    np.testing.assert_allclose(nearest(QUERY_BD, SUPPORT_BMD), [0.5**0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(nearest_3(QUERY_BD, SUPPORT_BMD), [0.5**0.5, 0.0], atol=1e-6)
    four = jnp.array([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [2.0, 0.0]]])
    # Cosines 1, 0, -1, 1: the three nearest have 1, 1, 0.
    np.testing.assert_allclose(nearest_3(jnp.array([[3.0, 0.0]]), four), [2 / 3], atol=1e-6)


def test_centred_by_hand():
    # Without the dreams' mean (5, 0): (1, 0) against (1, 0) and (0, 1).
    support = jnp.array([[[6.0, 0.0], [5.0, 1.0]]] * 3)
    dreams = jnp.array([[4.0, 0.0], [6.0, 0.0]])
    found = centred(jnp.array([[7.0, 0.0], [5.0, 9.0], [4.0, 0.0]]), support, dreams)
    # (0, 1) and (-1, 0) against the same: 1/2 and -1/2.
    np.testing.assert_allclose(found, [0.5, 0.5, -0.5], atol=1e-6)


def test_whitened_by_hand():
    # Dreams vary along x alone, with variance 4 = the mean of their one direction's and none:
    # singular values (sqrt 8, 0), variances (4, 0), typical 2; x shrinks by sqrt(1 / (1 + 2)).
    dreams = jnp.array([[-2.0, 0.0], [2.0, 0.0]])
    support = jnp.array([[[1.0, 1.0]]])
    found = whitened(jnp.array([[1.0, 0.0]]), support, dreams)
    np.testing.assert_allclose(found, [(1 / 3) ** 0.5 / (1 / 3 + 1) ** 0.5], atol=1e-6)
    # The same with everything moved by (7, 5): the mean is taken off first.
    moved = jnp.array([[7.0, 5.0]])
    again = whitened(jnp.array([[1.0, 0.0]]) + moved, support + moved[None], dreams + moved)
    np.testing.assert_allclose(again, found, atol=1e-6)


def test_mahalanobis_by_hand():
    # Mean (0, 0), variances (1, 3), their mean 2, shrunk to (1.5, 2.5).
    support = jnp.array([[1.0, 3**0.5], [-1.0, -(3**0.5)]])
    moved = mahalanobis(jnp.array([[7.0, 0.0], [10.0, 5.0]]), support + np.array([[7.0, 0.0]]))
    found = mahalanobis(jnp.array([[0.0, 0.0], [3.0, 5.0]]), support)
    np.testing.assert_allclose(moved, found, atol=1e-5)
    # (9 / 1.5 + 25 / 2.5) / 2 = 8.
    np.testing.assert_allclose(found, [1.0, np.exp(-8.0)], atol=1e-6)


def test_calibrated_by_hand():
    e = 3**0.5 / 2
    # Angles 0, 60 and 90 degrees. Leave-one-out mean cosines: (1/2 + 0) / 2 = 0.25,
    # (1/2 + e) / 2 = 0.683, (0 + e) / 2 = 0.433.
    support = jnp.array([[1.0, 0.0], [0.5, e], [0.0, 2.0]])
    queries = jnp.array([[0.5, e], [1.0, 0.0], [-1.0, 0.0]])
    # Their mean cosines: (1/2 + 1 + e) / 3 = 0.789, (1 + 1/2 + 0) / 3 = 0.5, -0.5: as large as
    # 3, 2 and 0 of the three.
    np.testing.assert_allclose(calibrated(queries, support), [1.0, 1.0, 0.0])
    # 0.4: between 0.25 and 0.433, one of three.
    a = (0.4 * 3) / (1.5**2 + (1 + e) ** 2) ** 0.5
    turn = np.arctan2(1 + e, 1.5) + np.arccos(a)
    between = jnp.array([[np.cos(turn), np.sin(turn)]])
    np.testing.assert_allclose(calibrated(between, support), [2 / 3], atol=1e-6)


@pytest.mark.parametrize("count", [5, 18, 19, 40])
@pytest.mark.parametrize("level", [0.05, 0.1, 0.2])
def test_the_hard_test_rejects_as_many_of_its_own_as_it_says(count, level):
    """Instances as the support, which are exchangeable with it: at most `level` are rejected.

    That is what makes it a conformal test; and with too few examples it rejects none.
    """
    draws = np.random.default_rng(0)
    rejected = []
    for _ in range(400):
        all_XD = draws.normal([3.0, 0.0, 0.0], 1.0, (count + 1, 3)).astype(np.float32)
        rejected.append(1 - float(calibrated_hard(all_XD[:1], all_XD[1:], level=level)[0]))
    least = least_support("calibrated_hard", {"level": level})
    assert least == {0.05: 19, 0.1: 9, 0.2: 4}[level]
    if count < least:
        assert not any(rejected)
    else:
        # The leave-one-out mean is of M - 1, an instance's of M; four standard errors of 400 draws.
        assert 0 < np.mean(rejected) < level + 4 * (level / 400) ** 0.5


def test_the_hard_test_by_hand():
    """19 own similarities: the least is reached by a query above it, and no other is needed."""
    angle_M = np.linspace(0.0, 1.0, 19)
    support = np.stack([np.cos(angle_M), np.sin(angle_M)], axis=1).astype(np.float32)
    mean_D = support.mean(axis=0)
    own_M = (support @ support.sum(axis=0) - 1) / 18
    size = float(np.linalg.norm(mean_D))
    for value, accepted in ((own_M.min() + 1e-4, 1.0), (own_M.min() - 1e-4, 0.0)):
        turn = np.arctan2(mean_D[1], mean_D[0]) + np.arccos(value / size)
        query = jnp.array([[np.cos(turn), np.sin(turn)]])
        assert calibrated_hard(query, support).tolist() == [accepted], value


def test_an_own_value_reaches_itself():
    """Own log-likelihood ratios 0, 1, 2 and 3: 1 reaches two of the four, itself among them."""
    own = jnp.array([[0.0, float(value), 0.0] for value in range(4)])
    query = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, -1.0, 0.0]])
    np.testing.assert_allclose(calibrated_likelihood(query, own), [1.0, 0.5, 0.0])


def test_layerwise_by_hand():
    # Layer 0: (1, 0) against (1, 0) and (0, 1): 1/2. Layer 1: (0, 3) against (0, 5) and (0, 1): 1.
    query = jnp.array([[[1.0, 0.0], [0.0, 3.0]], [[0.0, -2.0], [4.0, 0.0]]])
    support = jnp.array([[[1.0, 0.0], [0.0, 5.0]], [[0.0, 1.0], [0.0, 1.0]]])
    # The other instance: (0, -1) against (1, 0) and (0, 1): -1/2; (1, 0) against (0, 1): 0.
    np.testing.assert_allclose(layerwise(query, support), [[0.5, 1.0], [-0.5, 0.0]], atol=1e-6)


def test_a_shared_support_stands_for_every_instance():
    shared = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    evidence = Evidence(query_BD=QUERY_BD, support_MD=shared)
    assert evidence.rows() == 2
    found = evidence.pick(("query_BD", "support_BMD"))
    np.testing.assert_array_equal(found["support_BMD"], np.stack([shared, shared]))
    # Row 0: (1/sqrt 2 + 0) / 2; row 1: (0 + 1) / 2.
    weights = make_weighting("cosine", scale=1.0, scales="local")(evidence)
    np.testing.assert_allclose(weights.local_weight_B, [0.5**1.5, 0.5], atol=1e-6)
    # One of its own comes first.
    own = Evidence(query_BD=QUERY_BD, support_BMD=SUPPORT_BMD, support_MD=shared)
    np.testing.assert_array_equal(own.pick(("support_BMD",))["support_BMD"], SUPPORT_BMD)
    assert Evidence(query_nll_BA=np.zeros((4, 3))).rows() == 4


def test_likelihoods_and_entropy_by_hand():
    # Columns: base, global, local.
    nll = jnp.array([[9.0, 2.0, 2.0], [9.0, 3.0, 2.0], [9.0, 2.0, 4.0]])
    logistic = [0.5, 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(2))]
    np.testing.assert_allclose(likelihood_ratio(nll), logistic, rtol=1e-6)
    own = jnp.array([[9.0, 2.0, 1.5], [9.0, 2.0, 2.5], [9.0, 3.0, 1.0], [9.0, 2.0, 2.0]])
    # Own differences 0.5, -0.5, 2, 0; 0 reaches two of four, 1 three, -2 none.
    np.testing.assert_allclose(calibrated_likelihood(nll, own), [1.0, 1.0, 0.0])
    np.testing.assert_allclose(entropy(jnp.array([[9.0, 3.0, 1.0], [9.0, 0.0, 0.0]])), [0.75, 0.0])


def test_gate_is_the_ridge_logistic_regression_of_its_docstring():
    draw = np.random.default_rng(0)
    towards = np.zeros(24, np.float32)
    towards[:4] = 2.0
    own, other, support, dreams = (
        jnp.asarray(draw.normal(size=(n, 24)) + side * towards, jnp.float32)
        for n, side in ((40, 1), (40, 0), (30, 1), (20, 0))
    )
    mine, foreign = gate(own, support, dreams), gate(other, support, dreams)
    assert ((mine > 0.5).mean() + (foreign < 0.5).mean()) / 2 > 0.9

    # The same in the features' own coordinates, w = Z^T a, by gradient descent.
    both = jnp.concatenate([support, dreams])
    centre, spread = 0.5 * (support.mean(0) + dreams.mean(0)), both.std(0)

    def features(x):
        z = (x - centre[None]) / spread[None]
        return jnp.concatenate([z, jnp.ones((len(x), 1))], axis=1) / 24**0.5

    sign = jnp.concatenate([jnp.ones(30), -jnp.ones(20)])
    weight = jnp.concatenate([jnp.full(30, 0.5 / 30), jnp.full(20, 0.5 / 20)])

    def loss(w):
        return weight @ jax.nn.softplus(-sign * (features(both) @ w)) + 0.005 * w @ w

    step = jax.jit(lambda w: w - 2.0 * jax.grad(loss)(w))
    w = jnp.zeros(25)
    for _ in range(2000):
        w = step(w)
    np.testing.assert_allclose(mine, jax.nn.sigmoid(features(own) @ w), atol=1e-4)


def test_orientation_and_scale():
    local = make_weighting("cosine", scale=0.5, scales="local")(EVIDENCE)
    released = make_weighting("cosine", scale=0.5, scales="global")(EVIDENCE)
    np.testing.assert_allclose(local.local_weight_B, [0.5 * 0.5**0.5, 0.0], atol=1e-6)
    np.testing.assert_allclose(released.local_weight_B, [1 - 0.5 * 0.5**0.5, 1.0], atol=1e-6)
    np.testing.assert_array_equal(local.similarity_B, released.similarity_B)


def test_a_similarity_is_told_as_the_rule_gives_it():
    found = make_weighting("cosine", scale=0.25, scales="local")(EVIDENCE)
    np.testing.assert_allclose(found.similarity_B, [0.5**0.5, 0.0], atol=1e-6)
    np.testing.assert_allclose(found.local_weight_B, [0.25 * 0.5**0.5, 0.0], atol=1e-6)


def test_weights_are_clipped():
    opposite = -SUPPORT_BMD[:, :1]
    weights = make_weighting("cosine", scale=3.0, scales="local")
    assert weights(Evidence(QUERY_BD, opposite)).local_weight_B[0] == 0.0
    assert weights(EVIDENCE).local_weight_B[0] == 1.0


def test_constant_is_a_fixed_mix():
    weights = make_weighting("constant", scale=0.3, scales="local")(EVIDENCE)
    np.testing.assert_allclose(weights.local_weight_B, [0.3, 0.3])


def test_every_file_of_rules_is_registered():
    assert {"cosine", "gate", "calibrated", "layerwise"} <= set(RULES)
    assert all(RULES[name].__name__ == name for name in RULES)


def test_unknown_rule_names_the_known():
    with pytest.raises(UserError, match=r"weighting\.rule: 'cosin' .* cosine"):
        make_weighting("cosin", scale=1.0, scales="local")
