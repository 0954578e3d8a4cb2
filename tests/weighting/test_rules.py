"""Weighting rules by hand, their orientation, and how one is added."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.types import UserError
from feddpa_jax.weighting.evidence import Evidence
from feddpa_jax.weighting.registry import RULES, register
from feddpa_jax.weighting.rules import make_weighting
from feddpa_jax.weighting.similarity import cosine, l2, pearson
from feddpa_jax.weighting.support import draw_support, draw_support_per_instance

QUERY_BD = jnp.array([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
SUPPORT_BMD = jnp.array([[[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]], [[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]])

EVIDENCE = Evidence(QUERY_BD, SUPPORT_BMD)


def test_cosine_by_hand():
    # Row 0: both supports at 45 degrees, cos = 1 / sqrt 2. Row 1: (1 - 1) / 2 = 0.
    np.testing.assert_allclose(cosine(QUERY_BD, SUPPORT_BMD), [0.5**0.5, 0.0], atol=1e-6)


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


def test_orientation_and_scale():
    local = make_weighting("cosine", scale=0.5, scales="local")(EVIDENCE)
    released = make_weighting("cosine", scale=0.5, scales="global")(EVIDENCE)
    np.testing.assert_allclose(local.local_weight_B, [0.5 * 0.5**0.5, 0.0], atol=1e-6)
    np.testing.assert_allclose(released.local_weight_B, [1 - 0.5 * 0.5**0.5, 1.0], atol=1e-6)
    np.testing.assert_array_equal(local.similarity_B, released.similarity_B)


def test_weights_are_clipped():
    opposite = -SUPPORT_BMD[:, :1]
    weights = make_weighting("cosine", scale=3.0, scales="local")
    assert weights(Evidence(QUERY_BD, opposite)).local_weight_B[0] == 0.0
    assert weights(EVIDENCE).local_weight_B[0] == 1.0


def test_constant_is_a_fixed_mix():
    weights = make_weighting("constant", scale=0.3, scales="local")(EVIDENCE)
    np.testing.assert_allclose(weights.local_weight_B, [0.3, 0.3])


def test_adding_a_rule_is_one_function(monkeypatch):
    monkeypatch.setattr("feddpa_jax.weighting.registry.RULES", dict(RULES))

    @register("furthest")
    def furthest(query_BD, support_BMD):
        return jnp.max(jnp.einsum("BD,BMD->BM", query_BD, support_BMD), axis=-1)

    weigh = jax.jit(make_weighting("furthest", scale=0.1, scales="local"))
    # Row 0: max(2, 3) = 3; row 1: max(2, -2) = 2.
    np.testing.assert_allclose(weigh(EVIDENCE).local_weight_B, [0.3, 0.2])
    with pytest.raises(ValueError, match="exists already"):
        register("furthest")(furthest)


OWN = """
import jax.numpy as jnp

def gate(query_BD, support_BMD):
    return jnp.max(jnp.einsum("BD,BMD->BM", query_BD, support_BMD), axis=-1)

def flat(query_BD, support_BMD):
    return query_BD

def whole(query_BD, support_BMD):
    return jnp.ones(query_BD.shape[0], int)

def curious(query_BD, label_B):
    return label_B

def wrong(query_BD, support_BMD):
    return query_BD @ support_BMD
"""


def test_a_rule_of_a_file_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("my_rules.py:gate", f"{tmp_path}/my_rules.py:gate"):
        weigh = jax.jit(make_weighting(name, scale=0.1, scales="local"))
        np.testing.assert_allclose(weigh(EVIDENCE).local_weight_B, [0.3, 0.2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rules.py:gat", r"has no function 'gat'; it has gate, flat, whole, curious, wrong"),
        ("my_rules.py:curious", r"curious asks for 'label_B'; .* among query_BD, "),
        ("my_rule.py:gate", r"my_rule\.py does not exist"),
        ("my_rules.py:flat", r"gave float32\[3, 4\] .* float32\[3\]"),
        ("my_rules.py:whole", r"gave int32\[3\]"),
        ("my_rules.py:wrong", r"my_rules\.py:wrong fails with "),
        ("broken.py:gate", r"broken\.py fails with NameError: name 'nothing' is not defined"),
    ],
)
def test_a_rule_of_ones_own_that_does_not_work(tmp_path, monkeypatch, name, message):
    (tmp_path / "my_rules.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "broken.py").write_text("nothing", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"weighting\.rule: .*{message}") as caught:
        make_weighting(name, scale=1.0, scales="local")
    assert "\n" not in str(caught.value)


def test_unknown_rule_names_the_known():
    with pytest.raises(UserError, match=r"weighting\.rule: 'cosin' .* cosine"):
        make_weighting("cosin", scale=1.0, scales="local")


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
    assert sorted(set(draw_support(3, 5, seed=0, client=7).tolist())) == [0, 1, 2]
