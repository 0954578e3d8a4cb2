"""Rules of one's own: registered, with hyperparameters, or in a file; and what each refuses."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.types import UserError
from feddpa_jax.weighting.rule import (
    RULES,
    check_parameters,
    find_rule,
    named,
    parameters,
    sees,
    weighs_layers,
)
from feddpa_jax.weighting.rules.gate import gate
from feddpa_jax.weighting.weights import make_weighting
from tests.weighting.small_evidence import EVIDENCE


@pytest.fixture
def furthest():
    """A rule that a notebook registers."""

    @RULES.register(search={"power": (1.0, 2.0)})
    def furthest(query_BD, support_BMD, power=1.0, sign=1, flip=False):
        dot_BM = sign * jnp.einsum("BD,BMD->BM", query_BD, support_BMD)
        return jnp.max(-dot_BM if flip else dot_BM, axis=-1) ** power

    yield furthest
    RULES.remove("furthest")


def test_adding_a_rule_is_one_function(furthest):
    assert RULES.furthest is RULES.find("furthest") is furthest

    weigh = jax.jit(make_weighting("furthest", scale=0.1, scales="local"))
    # Row 0: max(2, 3) = 3; row 1: max(2, -2) = 2.
    np.testing.assert_allclose(weigh(EVIDENCE).local_weight_B, [0.3, 0.2])
    given = make_weighting(furthest, scale=0.1, scales="local")(EVIDENCE)
    np.testing.assert_allclose(given.local_weight_B, [0.3, 0.2])


def test_registering_a_rule_again_replaces(furthest):
    RULES.register("furthest", lambda query_BD: query_BD[:, 1])
    weights = make_weighting("furthest", scale=0.5, scales="local")(EVIDENCE)
    np.testing.assert_allclose(weights.local_weight_B, [0.0, 1.0])
    assert RULES.options("furthest") == {}


def test_hyperparameters_of_a_rule(furthest):
    assert sees(furthest) == ("query_BD", "support_BMD")
    assert parameters(furthest) == {"power": 1.0, "sign": 1, "flip": False}
    chosen = {"power": 2, "flip": True}  # 2 stands for 2.0.
    weigh = make_weighting("furthest", scale=0.1, scales="local", parameters=chosen)
    # Row 0: max(-2, -3)^2 = 4; row 1: max(-2, 2)^2 = 4.
    np.testing.assert_allclose(jax.jit(weigh)(EVIDENCE).similarity_B, [4.0, 4.0])
    assert RULES.options(furthest) == {"search": {"power": (1.0, 2.0)}}


@pytest.mark.parametrize(
    ("rule", "given", "message"),
    [
        ("furthest", {"powr": 1.0}, r"'powr' is unknown; .* furthest has power \(1\.0\), sign"),
        ("furthest", {"power": True}, r"power is True, not a number"),
        ("furthest", {"sign": 1.5}, r"sign is 1\.5, not an integer"),
        ("furthest", {"flip": 1}, r"flip is 1, not true or false"),
        ("cosine", {"ridge": 0.1}, r"'ridge' is unknown; the rule cosine has none"),
    ],
)
def test_hyperparameters_that_a_rule_does_not_have(furthest, rule, given, message):
    with pytest.raises(UserError, match=rf"weighting\.parameters: {message}"):
        check_parameters(rule, given)


def test_a_default_that_no_configuration_can_write():
    with pytest.raises(UserError, match=r"bins of .* has the default \[1\]; a hyperparameter"):
        find_rule(lambda query_BD, bins=[1]: query_BD[:, 0])


def test_search_names_hyperparameters():
    for search, message in (({"scale": (1.0,)}, "scale"), ({"ridge": ()}, "list of values")):
        with pytest.raises(ValueError, match=message):
            RULES.register("gate_2", gate, search=search)
    assert "gate_2" not in RULES


OWN = """
import jax
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

def ten(query_BD, support_BMD):
    return jax.lax.top_k(support_BMD.sum(axis=-1), 10)[0].mean(axis=-1)

def blind(support_BMD):
    return support_BMD.sum(axis=(1, 2))

def apart(query_BLD):
    return query_BLD.mean(axis=-1)

def deep(query_BLD, support_MLD):
    return query_BLD.mean(axis=(1, 2))

from math import hypot
"""


def test_a_rule_of_a_file_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert RULES.sources(["cosine", "my_rules.py:gate", "./my_rules.py:flat"]) == {
        "my_rules.py": OWN.encode()
    }
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
        ("my_rules.py:blind", r"blind does not look at the instance; .* query_BD"),
        ("my_rules.py:hypot", r"hypot"),
        ("leaves.py:gate", r"leaves\.py fails with SystemExit: 3"),
        ("broken.py:gate", r"broken\.py fails with NameError: name 'nothing' is not defined"),
    ],
)
def test_a_rule_of_ones_own_that_does_not_work(tmp_path, monkeypatch, name, message):
    (tmp_path / "my_rules.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "broken.py").write_text("nothing", encoding="utf-8")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"weighting\.rule: .*{message}") as caught:
        make_weighting(name, scale=1.0, scales="local")
    assert "\n" not in str(caught.value)


def test_a_rule_of_ones_own_that_fails_on_other_sizes(tmp_path, monkeypatch):
    """Ten neighbours are there on the trial, and not among two of a client's support."""
    (tmp_path / "my_rules.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    weigh = jax.jit(make_weighting("my_rules.py:ten", scale=1.0, scales="local"))
    with pytest.raises(UserError, match=r"weighting\.rule: my_rules\.py:ten fails with ") as caught:
        weigh(EVIDENCE)
    assert "\n" not in str(caught.value)


def test_a_rule_weighs_layers_if_it_gives_them(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert weighs_layers("layerwise") and weighs_layers("my_rules.py:apart")
    assert not weighs_layers("cosine") and not weighs_layers("my_rules.py:deep")


def test_a_file_of_rules_is_run_once_until_it_changes(tmp_path, monkeypatch):
    file = tmp_path / "counted.py"
    text = "open('runs', 'a').write('x')\ndef gate(query_BD):\n    return query_BD[:, 0]\n"
    file.write_text(text)
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        find_rule("counted.py:gate")
    assert (tmp_path / "runs").read_text() == "x"
    os.utime(file, ns=(1, 1))
    find_rule("counted.py:gate")
    assert (tmp_path / "runs").read_text() == "xx"


def test_a_function_with_a_built_in_rules_name_gets_another():
    def nearest_3(query_BD):
        return query_BD[:, 0]

    built_in = RULES["nearest_3"]
    try:
        assert named(nearest_3) == "my_nearest_3" == named(nearest_3)
        assert RULES["my_nearest_3"] is nearest_3 and RULES["nearest_3"] is built_in
    finally:
        RULES.remove("my_nearest_3")
    assert named(built_in) == "nearest_3"
    with pytest.raises(UserError, match="is not a name; use a named function"):
        named(lambda query_BD: query_BD[:, 0])
