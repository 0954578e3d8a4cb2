"""The compiled client step: many clients at once equal each alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import feddpa_jax.fed.engine as engine_module
from feddpa_jax.adapters.lora import init_adapter, take
from feddpa_jax.data.rounds import TrainingData
from feddpa_jax.fed.aggregate import make_aggregate, weighted_mean
from feddpa_jax.fed.engine import NonFiniteError, make_engine
from feddpa_jax.fed.method import FedState, Parts, copies, need
from feddpa_jax.fed.methods import METHODS
from feddpa_jax.models.config import ModelConfig
from feddpa_jax.models.decoder import Model, random_model
from feddpa_jax.types import TokenizedExample

CONFIG = ModelConfig(61, 16, 2, 4, 2, 6, 24)
TARGETS = ("q_proj", "v_proj", "down_proj")
NAMES = ("anna", "ben", "clara", "dora")


@pytest.fixture(scope="module")
def base() -> Model:
    return random_model(CONFIG, jax.random.key(3))


def make_data(**changes) -> TrainingData:
    """Four clients that differ sevenfold in number and fivefold in length of examples."""
    draw = np.random.default_rng(1)

    def example(low: int, high: int) -> TokenizedExample:
        length = int(draw.integers(low, high))
        tokens_T = draw.integers(1, 61, length).astype(np.int32)
        return TokenizedExample(tokens_T, int(draw.integers(1, length - 1)))

    spans = ((2, 4, 8), (5, 20, 40), (14, 4, 12), (7, 6, 20))
    data = TrainingData(
        names=NAMES,
        examples=tuple(tuple(example(lo, hi) for _ in range(n)) for n, lo, hi in spans),
        seed=0,
        epochs=2,
        batch_size=4,
        micro_batch_size=4,
        block_tokens=128,
    )
    return dataclasses.replace(data, **changes)


def sizes() -> dict[str, tuple[int, int]]:
    return {target: CONFIG.target_sizes()[target] for target in TARGETS}


new_adapter = functools.partial(init_adapter, sizes=sizes(), layers=2, rank=3)


def random_bank(clients: int) -> dict:
    """Adapters whose B is not zero."""
    bank = jax.vmap(new_adapter)(jax.random.split(jax.random.key(7), clients))
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(8), leaf.shape), bank
    )


@functools.cache
def engine_for(dropout: float):
    """One engine a setting: it compiles once a shape."""
    base = random_model(CONFIG, jax.random.key(3))
    return make_engine(base, scale=2.0, dropout=dropout, learning_rate=1e-2)


def train(data, bank, *, frozen=None, phase="local", members=None, dropout=0.0):
    engine = engine_for(dropout)
    members = np.arange(len(data.names), dtype=np.int32) if members is None else members
    chunks = data.chunks(members, 1, phase, data.shape(2))
    return engine.train(take(bank, members), chunks, key=jax.random.key(5), frozen=frozen)


def assert_trees_close(x, y, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), x, y)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_many_clients_equal_each_alone(frozen, dropout):
    data, bank = make_data(), random_bank(4)
    shared = jax.tree.map(lambda leaf: leaf[0] * 0.5, random_bank(1)) if frozen else None
    together, metrics = train(data, bank, frozen=shared, dropout=dropout)
    for c, name in enumerate(NAMES):
        alone, own = train(
            data, bank, frozen=shared, members=np.array([c], np.int32), dropout=dropout
        )
        assert_trees_close(take(together, np.array([c])), alone)
        np.testing.assert_allclose(metrics.losses[name], own.losses[name], atol=1e-5)
        assert not np.allclose(alone["q_proj"]["b"], take(bank, np.array([c]))["q_proj"]["b"])


def test_blocks_and_chunks_do_not_matter():
    data, bank = make_data(), random_bank(4)
    whole, _ = train(data, bank, dropout=0.3)
    for changes in ({"block_tokens": 48}, {"clients_per_step": 1}, {"clients_per_step": 3}):
        other, _ = train(dataclasses.replace(data, **changes), bank, dropout=0.3)
        assert_trees_close(whole, other)


def test_order_of_clients_does_not_matter():
    data, order = make_data(), [2, 0, 3, 1]
    turned = dataclasses.replace(
        data,
        names=tuple(NAMES[i] for i in order),
        examples=tuple(data.examples[i] for i in order),
    )
    results = []
    for own in (data, turned):
        method = METHODS["feddpa_t"].build(
            Parts(
                engine_for(0.3),
                new_adapter,
                make_aggregate("examples"),
            )
        )
        own = dataclasses.replace(own, participation=0.5)
        state = method.init(jax.random.key(0), jnp.array(own.ids, jnp.uint32))
        for number in range(3):
            data_round = own.round(number, own.shape(3))
            state, _ = method.round(state, data_round, key=jax.random.key(number))
        results.append(state)
    assert_trees_close(results[0].global_, results[1].global_)
    assert_trees_close(take(results[0].local_C, np.array(order)), results[1].local_C)


def test_absent_clients_keep_their_bits():
    data = make_data(participation=0.5)
    parts = Parts(engine_for(0.0), new_adapter, make_aggregate("uniform"))
    method = METHODS["local"].build(parts)
    state = FedState(None, random_bank(4))
    there = data.participants(0)
    assert len(there) == 2
    after, _ = method.round(state, data.round(0, data.shape(1)), key=jax.random.key(0))
    for c in range(4):
        before_a, after_a = (
            need(state.local_C)["q_proj"]["a"][c],
            need(after.local_C)["q_proj"]["a"][c],
        )
        assert np.array_equal(before_a, after_a) == (c not in there)


def test_one_compilation_over_three_rounds(base, monkeypatch):
    traces = []
    original = engine_module.client_losses
    monkeypatch.setattr(
        engine_module,
        "client_losses",
        lambda *args, **kwargs: traces.append(1) or original(*args, **kwargs),
    )
    data = make_data(block_tokens=64)
    engine = make_engine(base, scale=2.0, learning_rate=1e-3)
    method = METHODS["feddpa_t"].build(Parts(engine, new_adapter, make_aggregate("uniform")))
    state = method.init(jax.random.key(0), jnp.array(data.ids, jnp.uint32))
    shape = data.shape(3)
    for number in range(3):
        state, _ = method.round(state, data.round(number, shape), key=jax.random.key(number))
    assert len(traces) == 2  # One for the global phase, one for the local phase.


def test_a_client_that_diverges_is_named():
    data, bank = make_data(), random_bank(4)
    bank["q_proj"]["a"] = bank["q_proj"]["a"].at[2].set(jnp.nan)
    with pytest.raises(NonFiniteError, match=r"client 'clara', local phase"):
        train(data, bank)


def test_frozen_weights_get_no_gradient(base):
    """The step costs two thirds of what a full backward pass would cost."""
    data = make_data()
    chunk = data.chunks(np.arange(4), 0, "global", data.shape(1))[0]
    rows = jax.tree.map(jnp.asarray, next(iter(chunk.updates)).blocks[0])
    bank, key_B2 = random_bank(4), jnp.ones((len(rows.client_B), 2), jnp.uint32)

    def loss(bank, base):
        settings = {"scale": 2.0, "dropout": 0.0, "local_weight": 0.5, "detach": False}
        return engine_module.client_losses(base, bank, None, rows, key_B2, **settings).sum()

    text = jax.jit(jax.grad(loss)).lower(bank, base).as_text()
    ffn_by_width = f"tensor<{CONFIG.width}x{CONFIG.ffn}xf32>"
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert not any(line.split("->")[-1].strip().startswith(ffn_by_width) for line in products)


def test_unequal_clients_waste_little():
    data = make_data(batch_size=8, micro_batch_size=8)
    _, metrics = train(data, random_bank(4))
    assert metrics.real_tokens == data.tokens_a_training()
    longest = max(len(e.tokens_T) for own in data.examples for e in own)
    padded = data.epochs * sum(map(len, data.examples)) * longest
    assert metrics.computed_tokens < 0.65 * padded


def test_copies_and_mean():
    adapter = jax.tree.map(lambda leaf: leaf[0], random_bank(1))
    three = jax.tree.map(
        lambda leaf: leaf * jnp.array([1.0, 2.0, 6.0]).reshape(3, *[1] * (leaf.ndim - 1)),
        copies(adapter, 3),
    )
    # Uniform: (1 + 2 + 6) / 3 = 3; by examples 1, 1, 2: (1 + 2 + 12) / 4 = 3.75.
    assert_trees_close(
        make_aggregate("uniform")(three, np.array([1, 1, 2])),
        jax.tree.map(lambda leaf: 3.0 * leaf, adapter),
    )
    assert_trees_close(
        weighted_mean(three, jnp.array([1.0, 1.0, 2.0])),
        jax.tree.map(lambda leaf: 3.75 * leaf, adapter),
    )
