"""One client's updates by hand: loss, gradient, Adam, schedule, dropout."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from feddpa_jax.adapters.lora import Adapter, bank_of, take
from feddpa_jax.devices.mesh import single_mesh
from feddpa_jax.federated.penalty import proximal
from feddpa_jax.models.decoder import Model, causal_mask, from_parameters, random_model
from feddpa_jax.training.blocks import fill
from feddpa_jax.training.engine import Engine, make_engine
from feddpa_jax.training.packing import PackedRow, Segment
from feddpa_jax.training.rows import Block, BlockShape, Chunk, Rows
from feddpa_jax.training.step import Objective, client_losses, make_step
from feddpa_jax.types import TokenizedExample
from tests.training.objectives import ALONE, NOTHING, beside, frozen_of
from tests.training.test_engine import CONFIG, new_adapter, random_bank

pytestmark = pytest.mark.usefixtures("shared_steps")

SHAPE = BlockShape(2, 8, 8)
EXAMPLES = [
    TokenizedExample(np.array(tokens, np.int32), prompt)
    for tokens, prompt in (([5, 9, 2, 7, 30, 11], 3), ([8, 8, 60, 1], 1), ([3, 40, 41, 42, 12], 4))
]
# The number of a row, the number of its example, and the weight of its response positions.
Row = tuple[int, int, float]
PLAIN = {"scale": 2.0, "dropout": 0.0}
_losses = jax.jit(client_losses, static_argnames=(*PLAIN, "mix"))


@pytest.fixture(scope="module")
def base() -> Model:
    return random_model(CONFIG, jax.random.key(3))


def rows_of(*rows: Row, client: int = 0) -> Rows:
    packed = [
        PackedRow(client, number, SHAPE.length, [Segment(EXAMPLES[example], weight)])
        for number, example, weight in rows
    ]
    return fill(packed, SHAPE)[0]


def chunk_of(*updates: Sequence[Row], ident: int = 5) -> Chunk:
    """The training of one client, a block for each update."""
    blocks = [Block(rows_of(*rows), np.array([True]), len(rows), 16) for rows in updates]
    return Chunk(
        members=np.array([0]),
        slots=np.array([0]),
        names=("anna",),
        phase="local",
        id_C=np.array([ident], np.uint32),
        total_C=np.array([len(updates)], np.int32),
        blocks=blocks,
    )


def train(engine: Engine, bank: Adapter, chunk: Chunk, *, key: int = 0) -> Any:
    """A chunk's training of local adapters alone; those adapters, and the metrics."""
    trained, metrics = engine.train(ALONE, {"local": bank}, NOTHING, chunk, key=jax.random.key(key))
    return trained["local"], metrics


def losses(engine: Engine, *updates: Sequence[Row], ident: int = 5, key: int = 0) -> list[float]:
    chunk = chunk_of(*updates, ident=ident)
    _, metrics = train(engine, random_bank(1), chunk, key=key)
    return metrics.losses["anna"]


@jax.jit
def logits_of(base: Model, tokens_T: jax.Array) -> jax.Array:
    """Of every position of one sequence, by the base alone."""
    (length,) = tokens_T.shape
    mask_BTT = causal_mask(jnp.ones((1, length), jnp.int32))
    hidden_BTD, _ = base.hidden(tokens_T[None], jnp.arange(length)[None], mask_BTT, ())
    return base.logits(hidden_BTD[0])


def test_the_loss_is_the_weighted_nll_of_the_responses(base: Model):
    """The base's logits, as a fresh adapter's B is zero; softmax and sums in numpy."""
    expected = 0.0
    for number, weight in ((0, 0.25), (2, 0.5)):
        tokens_T, prompt, _ = EXAMPLES[number]
        logits_TV = np.asarray(logits_of(base, tokens_T), np.float64)
        log_p_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
        for place in range(prompt, len(tokens_T)):
            expected -= weight * log_p_TV[place - 1, tokens_T[place]]
    engine = make_engine(base, scale=2.0, learning_rate=1e-2)
    fresh = bank_of(new_adapter(jax.random.key(0)))
    chunk = chunk_of([(0, 0, 0.25), (1, 2, 0.5)])
    _, metrics = train(engine, fresh, chunk)
    np.testing.assert_allclose(metrics.losses["anna"], [expected], rtol=1e-5)


@jax.jit
def gradient(base: Model, adapters_C: Adapter, rows: Rows) -> Adapter:
    """Of the losses of a block's clients, summed."""
    keys = jnp.zeros((SHAPE.rows, 2), jnp.uint32)

    def total(bank: Adapter) -> jax.Array:
        parts = {"local": bank}
        settings = {**PLAIN, "mix": ALONE.mix}
        return client_losses(base, parts, NOTHING, rows, keys, **settings).sum()

    return jax.grad(total)(adapters_C)


@pytest.mark.parametrize("max_grad_norm", [1e-7, 1.5, 1e3])
def test_updates_are_adam_on_clipped_gradients_at_a_falling_rate(base: Model, max_grad_norm: float):
    """Three updates in numpy. Gradients of 1e-7 are no larger than epsilon; 1.5 cuts some."""
    updates = [[(0, 0, 0.2), (1, 1, 0.3)], [(0, 2, 1.5)], [(0, 1, 0.1)]]
    engine = make_engine(base, scale=2.0, learning_rate=1e-2, max_grad_norm=max_grad_norm)
    start = random_bank(1)
    trained, _ = train(engine, start, chunk_of(*updates))

    flat_X, unravel = ravel_pytree(start)
    p_X = np.asarray(flat_X, np.float64)
    m_X, v_X, norms = np.zeros_like(p_X), np.zeros_like(p_X), []
    for u, rows in enumerate(updates):
        grads = gradient(base, unravel(jnp.asarray(p_X, jnp.float32)), rows_of(*rows))
        g_X = np.asarray(ravel_pytree(grads)[0], np.float64)
        norms.append(np.linalg.norm(g_X))
        g_X *= min(1.0, max_grad_norm / norms[-1])
        m_X, v_X = 0.9 * m_X + 0.1 * g_X, 0.999 * v_X + 0.001 * g_X**2
        m_hat_X, v_hat_X = m_X / (1 - 0.9 ** (u + 1)), v_X / (1 - 0.999 ** (u + 1))
        p_X -= 1e-2 * (3 - u) / 3 * m_hat_X / (np.sqrt(v_hat_X) + 1e-8)
    if max_grad_norm == 1.5:
        assert min(norms) < 1.5 < max(norms)
    change_X = np.asarray(ravel_pytree(trained)[0]) - np.asarray(flat_X)
    expected_X = p_X - np.asarray(flat_X, np.float64)
    # Where a gradient is rounding alone, Adam's first step has its sign.
    sure_X = np.abs(m_X) > 1e-4 * np.abs(m_X).max()
    assert sure_X.mean() > 0.5
    np.testing.assert_allclose(change_X[sure_X], expected_X[sure_X], rtol=0.02, atol=2e-5)


def merged(base: Model, weighted: Sequence[tuple[Adapter, float]]) -> Model:
    """The base with adapters in its kernels at scale 2."""
    kernels = {path: np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(base.params)}
    named = {
        ".".join(str(getattr(part, "key", part)) for part in path): x for path, x in kernels.items()
    }
    for adapter, weight in weighted:
        for target, pair in adapter.items():
            block = "mlp" if target == "down_proj" else "attention"
            for layer in range(CONFIG.layers):
                product = np.asarray(pair["a"][layer]) @ np.asarray(pair["b"][layer])
                path = f"layers.{layer}.{block}.{target}.kernel"
                named[path] = named[path] + 2.0 * weight * product
    return from_parameters(CONFIG, named)


def adapters() -> tuple[Adapter, Adapter]:
    """A global and a local one."""
    return tuple(jax.tree.map(lambda leaf, at=c: leaf[at], random_bank(2)) for c in (0, 1))  # type: ignore[return-value]


def loss_of(
    base: Model, bank: Adapter, frozen: Adapter | None, local_weight: float = 0.3, **changes: bool
) -> jax.Array:
    objective = ALONE if frozen is None else beside(local_weight, **changes)
    keys = jnp.zeros((SHAPE.rows, 2), jnp.uint32)
    rows = rows_of((0, 0, 0.2), (1, 2, 0.7))
    parts = {"local": bank}
    return _losses(base, parts, frozen_of(frozen), rows, keys, mix=objective.mix, **PLAIN)[0]


def test_the_frozen_global_adapter_is_mixed_in_at_one_minus_a(base: Model):
    """a = 0.3: the loss of the base with 0.7 of the global and 0.3 of the local adapter in it."""
    global_, local = adapters()
    zero = bank_of(jax.tree.map(jnp.zeros_like, local))
    mixed = loss_of(base, bank_of(local), global_)
    np.testing.assert_allclose(
        mixed, loss_of(merged(base, [(global_, 0.7), (local, 0.3)]), zero, None), rtol=1e-5
    )
    alone = loss_of(base, bank_of(local), None)
    np.testing.assert_allclose(alone, loss_of(merged(base, [(local, 1.0)]), zero, None), rtol=1e-5)
    swapped = loss_of(base, bank_of(local), global_, local_weight=0.7)
    assert len({round(float(value), 3) for value in (mixed, alone, swapped)}) == 3


def test_exact_gradients_pass_through_the_frozen_branch_and_detached_ones_do_not(base: Model):
    """Along the exact gradient the loss rises as it says; the detached one is another vector."""
    global_, local = adapters()
    bank = bank_of(local)

    def of(detach: bool) -> np.ndarray:
        grads = jax.grad(lambda bank: loss_of(base, bank, global_, detach=detach))(bank)
        return np.asarray(ravel_pytree(grads)[0])

    exact_X, detached_X = of(False), of(True)
    flat_X, unravel = ravel_pytree(bank)
    direction_X = exact_X / np.linalg.norm(exact_X)
    up, down = (
        float(loss_of(base, unravel(flat_X + step * direction_X), global_))
        for step in (0.02, -0.02)
    )
    np.testing.assert_allclose((up - down) / 0.04, np.linalg.norm(exact_X), rtol=0.02)
    apart_X = exact_X - detached_X
    size = np.linalg.norm(apart_X)
    assert size > 0.05 * np.linalg.norm(exact_X)
    # Where they differ, the loss rises as the exact one says; the detached one says `size` less.
    up, down = (
        float(loss_of(base, unravel(flat_X + step * apart_X / size), global_))
        for step in (0.02, -0.02)
    )
    assert abs((up - down) / 0.04 - exact_X @ apart_X / size) < 0.1 * size
    # Nothing lies above the last layer's last map: there both are the same.
    last = jax.grad(lambda bank: loss_of(base, bank, global_, detach=True))(bank)["down_proj"]["b"]
    whole = jax.grad(lambda bank: loss_of(base, bank, global_))(bank)["down_proj"]["b"]
    np.testing.assert_allclose(last[0, 1], whole[0, 1], rtol=1e-4, atol=1e-6)


def test_every_row_update_client_and_seed_has_its_own_dropout(base: Model):
    """Nothing is learnt at a rate of 0, so only the masks can make the losses differ."""
    engine = make_engine(base, scale=2.0, dropout=0.5, learning_rate=0.0)
    first = [(0, 0, 1.0)]
    one = losses(engine, first)
    assert losses(engine, first) == one
    two = losses(engine, first, first)
    seen = [
        *two,  # update 0 and 1
        *losses(engine, [(1, 0, 1.0)]),  # another row
        *losses(engine, first, ident=6),  # another client
        *losses(engine, first, key=1),  # another seed
    ]
    assert two[0] == one[0]
    assert len({round(value, 5) for value in seen}) == 5
    plain = make_engine(base, scale=2.0, learning_rate=0.0)
    assert len({*losses(plain, first, first), *losses(plain, [(1, 0, 1.0)], key=1)}) == 1


def test_progress_tells_of_every_block(base: Model):
    told = []
    engine = make_engine(
        base, scale=2.0, learning_rate=0.0, on_block=lambda *tokens: told.append(tokens)
    )
    chunk = chunk_of([(0, 0, 1.0)], [(0, 1, 1.0), (1, 2, 1.0)])
    _, metrics = train(engine, random_bank(1), chunk)
    assert told == [(1, 16), (2, 16)]
    assert (metrics.real_tokens, metrics.computed_tokens) == (3, 32)


def test_a_penalty_pulls_each_update_once(base: Model):
    """FedProx by hand: mu (w - w0) joins the gradient before it is clipped, once an update."""
    frozen = jax.tree.map(lambda leaf: leaf[0], random_bank(1))
    bank = jax.tree.map(lambda leaf: leaf[None] + 0.25, frozen)
    pull = proximal("local", to="global", strength=3.0)
    chunk = chunk_of([(0, 0, 0.2)])._replace(blocks=[])
    parts = [
        Block(rows_of(row), np.array([last]), 1, 16)
        for row, last in (((0, 0, 0.2), False), ((1, 2, 0.7), True))
    ]
    chunk = chunk._replace(blocks=parts, total_C=np.array([1], np.int32))
    engine = make_engine(base, scale=2.0, learning_rate=1e-2, max_grad_norm=0.5)
    given = ({"local": bank}, frozen_of(frozen), chunk)
    trained, metrics = engine.train(Objective(ALONE.mix, pull), *given, key=jax.random.key(0))
    plain, same = engine.train(ALONE, *given, key=jax.random.key(0))
    # The losses told are without the penalty.
    np.testing.assert_allclose(metrics.losses["anna"], same.losses["anna"], rtol=1e-6)
    keys = jnp.zeros((SHAPE.rows, 2), jnp.uint32)
    rows = rows_of((0, 0, 0.2), (1, 2, 0.7))

    def loss(bank: Adapter) -> jax.Array:
        return _losses(base, {"local": bank}, NOTHING, rows, keys, mix=ALONE.mix, **PLAIN).sum()

    grads_X = np.asarray(ravel_pytree(jax.grad(loss)(bank))[0], np.float64) + 3.0 * 0.25
    grads_X *= min(1.0, 0.5 / np.linalg.norm(grads_X))
    # Adam's first step.
    expected_X = -1e-2 * grads_X / (np.abs(grads_X) + 1e-8)
    change_X = np.asarray(ravel_pytree(trained["local"])[0] - ravel_pytree(bank)[0])
    np.testing.assert_allclose(change_X, expected_X, rtol=0.01, atol=1e-5)
    assert not np.allclose(plain["local"]["q_proj"]["a"], trained["local"]["q_proj"]["a"])


def test_the_loss_alone_is_that_of_the_step(base: Model):
    """Without dropout and without a step; the mean over a client's updates."""
    engine = make_engine(base, scale=2.0, dropout=0.5, learning_rate=1e-2)
    bank = random_bank(1)
    chunk = chunk_of([(0, 0, 0.2), (1, 2, 0.7)], [(0, 1, 0.4)])
    found = engine.loss(ALONE, {"local": bank}, NOTHING, chunk)
    plain = make_engine(base, scale=2.0, learning_rate=1e-30)
    np.testing.assert_allclose(
        found, [np.mean(losses(plain, *[[(0, 0, 0.2), (1, 2, 0.7)], [(0, 1, 0.4)]]))], rtol=1e-5
    )


def test_the_callers_adapters_stay_as_they_are(base: Model):
    engine = make_engine(base, scale=2.0, learning_rate=1e-2)
    bank = random_bank(1)
    before = take(jax.tree.map(np.array, bank), np.array([0]))
    train(engine, bank, chunk_of([(0, 0, 1.0)]))
    chex.assert_trees_all_equal(bank, before)


def test_objectives_reach_the_step(base: Model):
    """The engine's loss is that of its objective's mix; detached is something else."""
    global_, local = adapters()
    chunk = chunk_of([(0, 0, 0.2), (1, 2, 0.7)])
    engine = make_engine(base, scale=2.0, learning_rate=1e-2, max_grad_norm=1e-7)
    found = {}
    for name, changes in {
        "0.3": (0.3, False),
        "detached": (0.3, True),
        "half": (0.5, False),
    }.items():
        parts, frozen = {"local": bank_of(local)}, frozen_of(global_)
        trained, metrics = engine.train(
            beside(*changes), parts, frozen, chunk, key=jax.random.key(0)
        )
        found[name] = metrics.losses["anna"][0], np.asarray(trained["local"]["q_proj"]["a"])
    expected = float(loss_of(base, bank_of(local), global_))
    assert found["0.3"][0] == pytest.approx(expected, rel=1e-5)
    assert found["detached"][0] == pytest.approx(expected, rel=1e-5)
    assert found["half"][0] == pytest.approx(
        float(loss_of(base, bank_of(local), global_, local_weight=0.5)), rel=1e-5
    )
    assert not np.allclose(found["0.3"][1], found["detached"][1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("changes", [{"loss_C": np.inf}, {"finite_C": False}])
def test_what_is_not_finite_is_never_forgotten(base: Model, changes: dict[str, float]):
    """A loss, though every adapter is finite; or an earlier update's, though this one's is."""
    settings = {"base_mode": "tensor", "max_grad_norm": 1.0, "remat": "none"}
    start, step, _ = make_step(single_mesh(), ALONE, **PLAIN, **settings)
    found = []
    for values in ({}, changes):
        state = start({"local": random_bank(1)})
        told = {name: jnp.full_like(getattr(state, name), x) for name, x in values.items()}
        state, _ = step(
            base,
            dataclasses.replace(state, **told),
            NOTHING,
            rows_of((0, 0, 1.0)),
            np.zeros((1, 2), np.uint32),
            np.array([2], np.int32),
            np.array([True]),
            np.float32(1e-2),
        )
        chex.assert_tree_all_finite(state.trained_C)
        found.append(bool(state.finite_C[0]))
    assert found == [True, False]


def test_the_state_is_donated(base: Model):
    """Two copies of the optimizer's state would not fit where one does."""
    adapter = new_adapter(jax.random.key(0))
    text = (
        make_engine(base, scale=2.0, learning_rate=1e-2)
        .lower(ALONE, {"local": adapter}, NOTHING, 1, SHAPE)
        .as_text()
    )
    assert text.count("tf.aliasing_output") + text.count("jax.buffer_donor") >= 6
