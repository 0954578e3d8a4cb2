"""A rule sees one instance at a time; one that does not is refused, or labelled."""

import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.types import UserError
from feddpa_jax.weighting.alone import looks_at_others, made_up, row_of
from feddpa_jax.weighting.rule import RULES, find_rule, sees, told


def ranks(query_BD, support_MD):
    """The place of an instance among all."""
    mean_B = (query_BD @ support_MD.T).mean(axis=1)
    return jnp.argsort(jnp.argsort(mean_B)).astype(jnp.float32) / len(mean_B)


def centred_by_batch(query_BD, support_BMD, *, strength=0.1):
    """Subtracts a little of the instances' mean."""
    middle_BD = query_BD - strength * query_BD.mean(axis=0, keepdims=True)
    return jnp.einsum("BD,BMD->B", middle_BD, support_BMD)


def shortest(length_B):
    """Whether an instance is the shortest."""
    return (length_B == length_B.min()).astype(jnp.float32)


def nearest_of_support(query_BD, support_MD):
    """Looks at a row alone."""
    return jnp.max(query_BD @ support_MD.T, axis=1)


def forgets_the_mask(query_nll_BTA):
    """A mean that is over fewer tokens where no longer prompt is beside."""
    return query_nll_BTA[..., 1].mean(axis=1)


def minds_the_mask(query_nll_BTA, query_mask_BT):
    """The same over what is known."""
    return query_nll_BTA[..., 1].sum(axis=1) / query_mask_BT.sum(axis=1)


def longest_text(query_text):
    """Whether no other text is longer."""
    most = max(map(len, query_text))
    return np.array([float(len(text) == most) for text in query_text]) + len(query_text)


def wants_several(query_BD):
    """Fails on a single row."""
    assert len(query_BD) > 1
    return query_BD[:, 0]


@pytest.mark.parametrize(
    "rule", [ranks, centred_by_batch, shortest, forgets_the_mask, longest_text]
)
def test_a_rule_whose_rows_depend_on_each_other_is_refused(rule):
    message = f"weighting.rule: {rule.__name__} gives an instance another similarity when other"
    with pytest.raises(UserError, match=message):
        find_rule(rule)


def test_a_rule_that_fails_on_one_row_is_told():
    with pytest.raises(UserError, match="wants_several fails with AssertionError"):
        find_rule(wants_several)


def test_registered_as_transductive_it_is_labelled():
    RULES.register("ranks", ranks, transductive=True)
    try:
        assert find_rule("ranks")(**made_up().pick(sees(ranks))).shape == (3,)
        assert told("ranks") == "ranks (transductive)"
    finally:
        RULES.remove("ranks")


def test_a_rule_that_sees_a_row_alone_is_taken():
    assert find_rule(nearest_of_support) is not None
    assert find_rule(minds_the_mask) is not None
    assert told("cosine") == "cosine"


@pytest.mark.parametrize("name", RULES)
def test_no_rule_of_the_package_looks_at_other_rows(name: str):
    rule = RULES.find(name)
    assert not looks_at_others(rule, sees(rule))


def test_a_row_of_made_up_evidence():
    """Each has the fields of its instance alone, and the client's whole."""
    whole, row = made_up(), row_of(made_up(), 1)
    assert row.rows() == 1
    assert np.array_equal(np.asarray(row.query_BD), np.asarray(whole.query_BD)[1:2])
    for name in ("support_MD", "held_HD", "dream_ND"):
        assert np.array_equal(getattr(row, name), getattr(whole, name))
