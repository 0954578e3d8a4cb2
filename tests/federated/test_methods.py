"""What each method trains, keeps and sends; and how a method is added."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.federated.clients import ClientParts
from feddpa_jax.federated.fedit import fedit
from feddpa_jax.federated.leaves import sends_own_parts
from feddpa_jax.federated.method import METHODS, Lora, Method, Part, Phase
from feddpa_jax.federated.server import take_mean
from feddpa_jax.models.decoder import random_model
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.training.engine import Engine, make_engine
from feddpa_jax.training.participation import sample_participants
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.types import TokenizedExample, UserError
from tests.federated.player import Player, player_for

pytestmark = pytest.mark.usefixtures("shared_steps")

CONFIG = ModelConfig(31, 8, 1, 2, 1, 4, 12)
NEW = functools.partial(
    init_adapter, sizes={"q_proj": CONFIG.target_sizes()["q_proj"]}, layers=1, rank=2
)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    draw = np.random.default_rng(0)
    examples = tuple(
        tuple(TokenizedExample(draw.integers(1, 31, 6).astype(np.int32), 3) for _ in range(4))
        for _ in range(3)
    )
    return TrainingData(("x", "y", "z"), examples, 0, 1, 2, 2)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(random_model(CONFIG, jax.random.key(0)), scale=2.0, learning_rate=1e-2)


@pytest.fixture
def player(engine: Engine, data: TrainingData, tmp_path: Path) -> Callable[..., Player]:
    return lambda name, **more: player_for(name, engine, NEW, data, tmp_path / name, **more)


def same(x, y) -> bool:
    return all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    )


def test_feddpa_t_trains_local_from_round_1_on(player):
    start, first, second = player("feddpa_t").play(2)
    assert same(start.clients.all(), first.clients.all())
    assert not same(first.clients.all(), second.clients.all())
    assert not same(start.server, first.server)


def test_feddpa_t_local_does_not_touch_global(player):
    """The global adapter is FedIT's: local adapters only look at it."""
    assert same(player("feddpa_t").play(1)[-1].server, player("fedit").play(1)[-1].server)


def test_feddpa_f_personalizes_once_from_the_final_global(player):
    both = player("feddpa_f", rounds=2)
    last = both.play(2)[-1]
    assert last.clients.all() == {}
    after, metrics = both.round(last, 2, key=9)
    assert same(after.server, last.server)
    assert set(metrics["personalization"].losses) == {"x", "y", "z"}
    own_C, global_ = after.clients.all()["local"], last.server["global"]
    gap = np.abs(own_C["q_proj"]["a"] - global_["q_proj"]["a"][None]).max()
    assert 0 < gap < 0.1


def test_local_has_no_global_and_clients_differ(player):
    last = player("local").play(1)[-1]
    assert last.server == {}
    a_CLDR = last.clients.all()["local"]["q_proj"]["a"]
    assert not np.allclose(a_CLDR[0], a_CLDR[1])


@pytest.mark.parametrize("name", ["fedit", "centralized"])
def test_global_methods_have_no_local(player, name):
    last = player(name).play(1)[-1]
    assert list(last.server) == ["global"]
    assert last.clients.parts == ()


def test_every_start_follows_from_its_key_and_its_clients_name(player):
    """Another key: another global adapter, and other local ones; no two of them are alike."""
    both = player("feddpa_t")
    starts = [both.start(key) for key in (1, 1, 2)]
    assert same(starts[0].server, starts[1].server)
    assert same(starts[0].clients.all(), starts[1].clients.all())
    seen = []
    for state in starts[::2]:
        seen.append(state.server["global"]["q_proj"]["a"])
        seen += list(state.clients.all()["local"]["q_proj"]["a"])
    assert len({np.asarray(a).tobytes() for a in seen}) == 2 * (1 + 3)
    renamed = both.federation._replace(id_C=both.federation.id_C + np.uint32(1))
    other = both._replace(federation=renamed).start(1)
    assert same(other.server, starts[0].server)
    assert not same(other.clients.all(), starts[0].clients.all())
    # The methods without the other adapter start from the same ones.
    assert same(player("fedit").start(1).server, starts[0].server)
    assert same(player("local").start(1).clients.all(), starts[0].clients.all())


def test_participation_is_a_uniform_sample_by_name():
    ids = list(range(100, 140))
    draws = [
        sample_participants(ids, participation=0.25, seed=0, round_number=r) for r in range(200)
    ]
    assert all(len(set(draw)) == 10 for draw in draws)
    often = np.bincount(np.concatenate(draws), minlength=40) / 200
    # Each client's share is 0.25 with a deviation of sqrt(.25 * .75 / 200) = 0.031.
    assert often.min() > 0.13
    assert often.max() < 0.37
    turned = sample_participants(ids[::-1], participation=0.25, seed=0, round_number=0)
    assert {ids[::-1][i] for i in turned} == {ids[i] for i in draws[0]}


def test_a_phase_may_rest_in_some_rounds(player):
    """Every other round only: a method of a user's own, built on another one."""

    def every_other(lora: Lora) -> Method:
        method = fedit(lora)
        (phase,) = method.phases
        rests = dataclasses.replace(phase, when=lambda number: number % 2 == 0)
        return dataclasses.replace(method, phases=(rests,))

    METHODS.register("every_other", every_other, answers_with="global")
    try:
        start, first, second = player("every_other").play(2)
    finally:
        METHODS.remove("every_other")
    assert not same(start.server, first.server)
    assert same(first.server, second.server)


def test_every_registered_method_fits_together(player):
    """Its phases name parts that there are, its mixes give terms, and its flags are true."""
    for name, entry in METHODS.items():
        method = player(name).method
        assert entry.personalizes == any(phase.after for phase in method.phases)
        assert method.phases_of(1, 9)
        assert entry.title


@contextlib.contextmanager
def registered(build: Callable[..., Any], **known: Any) -> Iterator[str]:
    METHODS.register("of_a_test", build, **{"answers_with": "global", **known})
    try:
        yield "of_a_test"
    finally:
        METHODS.remove("of_a_test")


def test_phases_follow_the_keys_that_they_name(player):
    """Of the two that a round's key is split into, or the round's own."""
    seen = []
    for name in ("feddpa_t", "fedit", "local"):
        one = player(name)
        train = one.federation.engine.train

        def spy(*given, key, name=name, train=train, **more):
            seen.append((name, jax.random.key_data(key).tolist()))
            return train(*given, key=key, **more)

        engine = one.federation.engine._replace(train=spy)
        spied = one._replace(federation=one.federation._replace(engine=engine))
        spied.round(spied.start(), 1, key=7)
    whole = jax.random.key(7)
    keys = [jax.random.key_data(key).tolist() for key in (whole, *jax.random.split(whole))]
    expected = [("feddpa_t", 1), ("feddpa_t", 2), ("fedit", 2), ("local", 0)]
    assert seen == [(name, keys[place]) for name, place in expected]


def test_phases_read_clients_only_where_they_look_at_them(player, monkeypatch):
    read = []
    take = ClientParts.take

    def spy(clients, members):
        read.append(len(members))
        return take(clients, members)

    monkeypatch.setattr(ClientParts, "take", spy)
    # FedDPA-T's global phase does not; its local one does; FedDPA-F's own adapters start anew.
    for name, number, expected in (("feddpa_t", 0, []), ("feddpa_t", 1, [3]), ("feddpa_f", 9, [])):
        one = player(name)
        one.round(one.start(), number)
        assert read == expected
        read.clear()


def test_parts_start_apart_and_leaves_that_do_not_train_stay(player):
    """Two fresh parts of the server and of each client; one leaf of one part is trained."""

    def two_of_each(lora: Lora) -> Method:
        both = {name: Part("server", lora.fresh) for name in ("global", "other")}
        own = {name: Part("client", lora.fresh) for name in ("local", "second")}
        phase = Phase("local", train=("local.b",))
        return Method({**both, **own}, (phase,))

    with registered(two_of_each) as name:
        start, after = player(name).play(1)
    before_C, after_C = start.clients.all(), after.clients.all()
    seen = [part["q_proj"]["a"] for part in start.server.values()]
    seen += [a for part in before_C.values() for a in part["q_proj"]["a"]]
    assert len({np.asarray(a).tobytes() for a in seen}) == 2 + 2 * 3
    assert same(before_C["second"], after_C["second"])
    assert same(before_C["local"]["q_proj"]["a"], after_C["local"]["q_proj"]["a"])
    assert not same(before_C["local"]["q_proj"]["b"], after_C["local"]["q_proj"]["b"])


def one_part(scope: Any, *phases: Phase) -> Callable[[Lora], Method]:
    return lambda lora: Method({"p": Part(scope, lora.fresh)}, phases)


PLAIN = Phase("p", train=("p",))


@pytest.mark.parametrize(
    ("build", "known", "said"),
    [
        (lambda lora: None, {}, "gave NoneType; a method's function gives a Method"),
        (one_part("server"), {}, "has no phase"),
        (one_part("server", PLAIN), {"personalizes": True}, "its registration's personalizes"),
        (one_part("server", Phase("p", train=("q.a",))), {}, "names 'q'; its parts are p"),
        (one_part("server", dataclasses.replace(PLAIN, beside=("q",))), {}, "names 'q'"),
        (one_part("server", Phase("p", train=())), {}, "phase p trains nothing"),
        (one_part("client", dataclasses.replace(PLAIN, server=take_mean)), {}, "sends nothing"),
        (one_part("server", dataclasses.replace(PLAIN, mix=lambda parts: [])), {}, "is empty"),
        (one_part("server", dataclasses.replace(PLAIN, mix=lambda parts: 1)), {}, "not Terms"),
    ],
)
def test_a_method_that_does_not_fit_together(player, build, known, said):
    with registered(build, **known) as name, pytest.raises(UserError, match=said) as refused:
        player(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"answers_with": "gate"}, "'gate' is no mode"),
        ({"modes": ("Gate",)}, "'Gate': a mode's name is lower-case"),
        ({"modes": ("mixed",)}, "'mixed': a mode's name is"),
        ({"modes": ("global",)}, "'global': a mode's name is"),
    ],
)
def test_modes_of_a_methods_own(known, said):
    with pytest.raises(ValueError, match=said), registered(fedit, **known):
        pass


def test_which_methods_send_clients_own_parts(player):
    """By themselves or as a difference to what they sent before."""
    found = {name for name in METHODS if sends_own_parts(player(name).method)}
    assert found == {"fdlora", "fedalt", "fedlease"}
