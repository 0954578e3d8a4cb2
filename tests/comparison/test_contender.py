"""Methods with settings of their own, as one types them."""

import re

import pytest

from feddpa_jax.comparison.contender import Contender, contenders
from feddpa_jax.config import Config
from feddpa_jax.federated.method import METHODS
from feddpa_jax.types import UserError


def test_names_options_and_fields():
    found = contenders(
        "fedit, feddpa_t(fed.local_weight=0.3,fed.rounds = 4), my/own.py:gate(a=[1, 2])"
    )
    assert found == (
        Contender("fedit"),
        Contender("feddpa_t", {}, {"fed.local_weight": 0.3, "fed.rounds": 4}),
        Contender("my/own.py:gate", {"a": [1, 2]}),
    )
    assert [one.label for one in found] == [
        "fedit",
        "feddpa_t(fed.local_weight=0.3, fed.rounds=4)",
        "my/own.py:gate(a=[1, 2])",
    ]
    # What a label says is read back as the same.
    assert contenders([one.label for one in found]) == found


def test_values_are_yaml():
    (found,) = contenders("fedit(a=true,b=null,c='x, (y',d=1e-3,e=text)")
    assert found.options == {"a": True, "b": None, "c": "x, (y", "d": 1e-3, "e": "text"}


def test_folders_are_safe_and_carry_the_settings():
    names = "fedit,fedit(fed.rounds=1),fedit(fed.rounds=2),../a b/my.py:one"
    assert [one.folder for one in contenders(names)] == [
        *("fedit", "fedit_fed.rounds_1", "fedit_fed.rounds_2", "a_b_my.py_one"),
    ]


def test_the_configuration_of_one():
    config = Config(fed={"rounds": 7, "method": "local"}, seed=5)
    (found,) = contenders("feddpa_t(fed.local_weight=0.25,lora.rank=2)")
    made = found.config(config, 3)
    assert (made.fed.method, made.fed.local_weight, made.fed.rounds) == ("feddpa_t", 0.25, 7)
    assert (made.lora.rank, made.lora.alpha, made.seed) == (2, 16.0, 3)
    assert (config.fed.method, config.seed) == ("local", 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "methods: names none; write name, or name(option=value, ...)"),
        (" , ,", "methods: names none"),
        ("feddpat", "methods: 'feddpat' is unknown; did you mean 'feddpa_t'?"),
        ("fedit,fedit", "methods: fedit is there twice"),
        ("fedit(fed.rounds=1),fedit( fed.rounds = 1 )", "methods: fedit(fed.rounds=1) is there"),
        ("fedit(", "lacks a closing ')'"),
        ("fedit)", "'fedit)' is no method"),
        ("fedit(x)", "methods: fedit: 'x' is no option"),
        ("fedit(x=)", "methods: fedit: 'x=' is no option"),
        ("fedit(=1)", "methods: fedit: '=1' is no option"),
        ("fedit(x=1)(y=2)", "methods: 'fedit(x=1)(y=2)' lacks a closing ')'"),
        ("fedit(x='a)", 'lacks a closing "\'"'),
        ("fedit(x=1,x=2)", "methods: fedit: x is there twice"),
        ("fedit(fed.rounds=1,fed.rounds=2)", "methods: fedit: fed.rounds is there twice"),
        ("fedit(x=[1, 2)", "lacks a closing"),
        ("fedit(fed.rouds=1)", "methods: fedit: unknown field 'fed.rouds'"),
        ("fedit(data.path=x)", "data.path is the same for all methods; only fields of fed, lora,"),
        ("fedit(fed.method=local)", "fed.method is the same for all methods"),
        ("a.py:x,A.py:x", "methods: a.py:x and A.py:x would have one folder, A.py_x; rename one"),
    ],
)
def test_what_is_no_list_of_methods(text: str, message: str):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        contenders(text)
    assert "\n" not in str(error.value)


def test_a_wrong_value_names_method_and_field():
    (found,) = contenders("feddpa_t(fed.local_weight=2)")
    with pytest.raises(UserError, match=r"methods: feddpa_t\(fed.local_weight=2\): fed.local_weig"):
        found.config(Config(), 0)


def test_options_of_a_method():
    """Those of the configuration are its own method's; an unknown one is refused before work."""

    def strong(lora, *, strength: float = 0.1, times: int = 1):
        raise AssertionError("it is not built here")

    METHODS.register("strong", strong)
    try:
        config = Config(fed={"method": "strong", "options": {"strength": 0.2, "times": 3}})
        (one,), (bare,), (other,) = map(contenders, ("strong(strength=0.5)", "strong", "fedit"))
        assert one.config(config, 0).fed.options == {"strength": 0.5, "times": 3}
        assert bare.config(config, 0).fed.options == {"strength": 0.2, "times": 3}
        assert other.config(config, 0).fed.options == {}
        for text in ("strong(force=1)", "fedit(force=1)"):
            (wrong,) = contenders(text)
            with pytest.raises(
                UserError, match=r"methods: \w+\(force=1\): fed.options: 'force' is"
            ):
                wrong.config(config, 0)
    finally:
        METHODS.remove("strong")


def test_what_is_registered_needs_no_name():
    from feddpa_jax.federated.fedit import fedit

    assert contenders([fedit, "local"]) == (Contender("fedit"), Contender("local"))
    with pytest.raises(UserError, match="is not registered"):
        contenders([lambda parts: parts])
