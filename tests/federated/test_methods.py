"""What each method trains, keeps and sends; and how a method is added."""

import functools

import jax
import numpy as np
import pytest

from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.federated.method import METHODS, FedState, Method, Parts, need
from feddpa_jax.models.decoder import random_model
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.training.engine import make_engine
from feddpa_jax.training.participation import sample_participants
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.types import TokenizedExample
from tests.federated.parts import parts_for

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
def parts(data: TrainingData, tmp_path_factory) -> Parts:
    base = random_model(CONFIG, jax.random.key(0))
    engine = make_engine(base, scale=2.0, learning_rate=1e-2)
    return parts_for(engine, NEW, data, tmp_path_factory.mktemp("clients"))


def play(method: Method, data: TrainingData, rounds: int) -> list[FedState]:
    states = [method.init(jax.random.key(1))]
    for number in range(rounds):
        data_round = data.round(number, data.shapes(rounds))
        state, _ = method.round(states[-1], data_round, key=jax.random.key(number))
        states.append(state)
    return states


def same(x, y) -> bool:
    return all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    )


def test_feddpa_t_trains_local_from_round_1_on(parts, data):
    start, first, second = play(METHODS["feddpa_t"].build(parts), data, 2)
    assert same(need(start.local).all(), need(first.local).all())
    assert not same(need(first.local).all(), need(second.local).all())
    assert not same(start.global_, first.global_)


def test_feddpa_t_local_does_not_touch_global(parts, data):
    """The global adapter is FedIT's: local adapters only look at it."""
    dual = play(METHODS["feddpa_t"].build(parts), data, 1)[-1]
    alone = play(METHODS["fedit"].build(parts), data, 1)[-1]
    assert same(dual.global_, alone.global_)


def test_feddpa_f_personalizes_once_from_the_final_global(parts, data):
    method = METHODS["feddpa_f"].build(parts)
    last = play(method, data, 2)[-1]
    assert last.local is None
    assert method.personalize is not None
    data_round = data.round(2, data.shapes(2), everybody=True)
    after, metrics = method.personalize(last, data_round, key=jax.random.key(9))
    assert same(after.global_, last.global_)
    assert set(metrics["personalization"].losses) == {"x", "y", "z"}
    gap = np.abs(
        need(after.local).all()["q_proj"]["a"] - need(last.global_)["q_proj"]["a"][None]
    ).max()
    assert 0 < gap < 0.1


def test_local_has_no_global_and_clients_differ(parts, data):
    last = play(METHODS["local"].build(parts), data, 1)[-1]
    assert last.global_ is None
    local_C = need(last.local).all()
    assert not np.allclose(local_C["q_proj"]["a"][0], local_C["q_proj"]["a"][1])


@pytest.mark.parametrize("name", ["fedit", "centralized"])
def test_global_methods_have_no_local(parts, data, name):
    assert play(METHODS[name].build(parts), data, 1)[-1].local is None


def test_every_start_follows_from_its_key_and_its_clients_name(parts):
    """Another key: another global adapter, and other local ones; no two of them are alike."""
    starts = [METHODS["feddpa_t"].build(parts).init(jax.random.key(k)) for k in (1, 1, 2)]
    assert same(starts[0].global_, starts[1].global_)
    assert same(need(starts[0].local).all(), need(starts[1].local).all())
    seen = []
    for state in starts[::2]:
        seen.append(need(state.global_)["q_proj"]["a"])
        seen += list(need(state.local).all()["q_proj"]["a"])
    assert len({np.asarray(a).tobytes() for a in seen}) == 2 * (1 + 3)
    renamed = parts._replace(id_C=parts.id_C + np.uint32(1))
    other = METHODS["feddpa_t"].build(renamed).init(jax.random.key(1))
    assert same(other.global_, starts[0].global_)
    assert not same(need(other.local).all(), need(starts[0].local).all())
    # The methods without the other adapter start from the same ones.
    assert same(METHODS["fedit"].build(parts).init(jax.random.key(1)).global_, starts[0].global_)
    alone = METHODS["local"].build(parts).init(jax.random.key(1))
    assert same(need(alone.local).all(), need(starts[0].local).all())


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


def test_a_new_method_is_a_pair_of_functions(parts, data):
    """Every other round only: built from the same parts, with the same state."""

    def every_other(parts: Parts) -> Method:
        fedit = METHODS["fedit"].build(parts)

        def round(state, data, *, key):
            return fedit.round(state, data, key=key) if data.number % 2 == 0 else (state, {})

        return Method(fedit.init, round)

    start, first, second = play(every_other(parts), data, 2)
    assert not same(start.global_, first.global_)
    assert same(first.global_, second.global_)


def test_the_table_of_methods():
    """What each answers with, whether it personalizes or pools, and what lies beside its phases."""
    assert {
        name: (entry.answers_with, entry.personalizes, entry.pooled, dict(entry.phases))
        for name, entry in METHODS.items()
    } == {
        "feddpa_t": ("instance", False, False, {"local": True, "global": False}),
        "feddpa_f": ("instance", True, False, {"global": False}),
        "fedit": ("global", False, False, {"global": False}),
        "fedlora": ("local", True, False, {"global": False}),
        "local": ("local", False, False, {"local": False}),
        "centralized": ("global", False, True, {"global": False}),
    }
