"""A method that does not fit together is refused by one line that says what to write."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax import Config
from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.adapters.mix import Term
from feddpa_jax.federated.build import build
from feddpa_jax.federated.method import METHODS, Answers, Lora, Method, Part, Phase
from feddpa_jax.federated.server import Moment
from feddpa_jax.types import UserError

SIZES = {"q_proj": (8, 8)}
LORA = Lora(
    functools.partial(init_adapter, sizes=SIZES, layers=4, rank=2), SIZES, 4, 2, 8.0, ("x", "y")
)
SERVER = LORA.fresh(jax.random.key(0))
MOMENT = Moment(0, jax.random.key(1), np.arange(2))
FEDIT = Method({"global": Part("server", LORA.fresh)}, (Phase("g", train=("global",)),))


@pytest.fixture
def made() -> Iterator[Callable[..., Method]]:
    """Builds a method of one's own as a configuration names it."""

    def mine(method: Any) -> Method:
        METHODS.register("mine", lambda lora: method, answers_with="global")
        return build("mine", LORA, vars(Config().fed), {})

    yield mine
    METHODS.remove("mine")


def phase(**changed: Any) -> Method:
    """FedIT with a phase of other settings."""
    return dataclasses.replace(FEDIT, phases=(dataclasses.replace(FEDIT.phases[0], **changed),))


def parts(**added: Part) -> dict[str, Part]:
    return {**FEDIT.parts, **added}


def half(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[:2], tree)


REFUSED = {
    "gave NoneType; a method's function gives a Method": None,
    "has no phase; give it one": dataclasses.replace(FEDIT, phases=()),
    "part global has the scope 'all'; give it 'server' or": dataclasses.replace(
        FEDIT, parts={"global": FEDIT.parts["global"]._replace(scope="all")}
    ),
    "part more has no first value": dataclasses.replace(
        FEDIT, parts=parts(more=Part("server", None))
    ),
    "two phases of round 0 are named 'g'": dataclasses.replace(FEDIT, phases=FEDIT.phases * 2),
    "names 'globl'; its parts are global": phase(train=("globl",)),
    "names 'global.c'; the part's leaves are a, b": phase(train=("global.c",)),
    "names 'lokal'; its parts are global": phase(sends=("lokal.b",)),
    "names 'own', which nothing makes": dataclasses.replace(
        phase(beside=("own",)), parts=parts(own=Part("client", None))
    ),
    "sends 'own', which is no part of the server": dataclasses.replace(
        phase(train=("own",), sends=("own",)), parts=parts(own=Part("client", LORA.fresh))
    ),
    "reduce 'median'; give it 'mean', 'sum' or 'stack'": phase(reduce="median"),
    "sends a stack, of which only a server step": phase(reduce="stack"),
    "the mix of phase g gave float, not Terms": phase(mix=lambda found: 0.5),
    "the mix of phase g is empty": phase(mix=lambda found: []),
    "fails with KeyError: 'lokal'": phase(mix=lambda found: [Term(found["lokal"])]),
    r"weight of shape \(5,\)": phase(mix=lambda found: [Term(found["global"], jnp.ones(5))]),
    r"\['q_proj'\]\['a'\] of shape \(1, 2, 8, 2\) .* all 4 layers": dataclasses.replace(
        FEDIT, parts={"global": Part("server", lambda key: half(LORA.fresh(key)))}
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_method_that_does_not_fit_together(made, message):
    with pytest.raises(UserError, match=f"^fed.method: mine:? .*{message}"):
        made(REFUSED[message])


STEPS = {
    "fails with ValueError: no": lambda sent: (_ for _ in ()).throw(ValueError("no")),
    "gave int; give {part: new value}": lambda sent: 3,
    "gave 'more'; the server's parts are global": lambda sent: {"more": sent["global"]},
    r"of shape \(2, 8, 2\); keep \(4, 8, 2\)": lambda sent: {"global": half(sent["global"])},
    r"without \['q_proj'\]\['b'\]": lambda sent: {
        "global": {"q_proj": {"a": sent["global"]["q_proj"]["a"]}}
    },
    r"with \['v_proj'\]\['a'\], which": lambda sent: {
        "global": {**sent["global"], "v_proj": {"a": sent["global"]["q_proj"]["a"]}}
    },
    "of dtype float64; keep float32": lambda sent: {
        "global": jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sent["global"])
    },
}


@pytest.mark.parametrize("message", STEPS)
def test_a_server_step_that_gives_something_else(made, message):
    """Each would otherwise be an error where the next round trains, or none at all."""
    step = made(phase(server=lambda sent, server, moment: STEPS[message](sent))).phases[0].server
    with pytest.raises(UserError, match=f"^fed.method: mine:? .*{message}"):
        step({"global": SERVER}, {"global": SERVER}, MOMENT)


def test_a_server_step_that_keeps_shapes(made):
    twice = made(
        phase(
            server=lambda sent, server, moment: {
                "global": jax.tree.map(jnp.add, server["global"], sent["global"])
            }
        )
    )
    found = twice.phases[0].server({"global": SERVER}, {"global": SERVER}, MOMENT)
    np.testing.assert_array_equal(found["global"]["q_proj"]["a"], 2 * SERVER["q_proj"]["a"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "gave int, not Answers"),
        (Answers(SERVER, None), r"global_C with .* of shape \(4, 8, 2\)"),
        (Answers(None, jax.tree.map(lambda leaf: leaf[None], SERVER)), "local_C with .* 2, and"),
    ],
)
def test_answers_of_other_shapes(made, given, message):
    method = made(dataclasses.replace(FEDIT, answers=lambda server, own_C, members: given))
    with pytest.raises(UserError, match=f"^fed.method: mine:? .*{message}"):
        method.answers({"global": SERVER}, {}, np.arange(2))


@pytest.mark.parametrize("name", ["receive", "penalty", "upload", "keep"])
def test_a_function_that_fails(made, name):
    def broken(*given: Any) -> Any:
        raise KeyError("lokal")

    with pytest.raises(UserError, match=r"^fed\.method: mine fails with KeyError: 'lokal'; fix it"):
        getattr(made(phase(**{name: broken})).phases[0], name)({}, {}, MOMENT)
