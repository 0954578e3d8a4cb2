"""The compiled client step: many clients at once equal each alone."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import feddpa_jax.training.step as step_module
from feddpa_jax.adapters.lora import init_adapter, take
from feddpa_jax.devices.mesh import single_mesh
from feddpa_jax.federated.aggregate import shares, weighted_sum
from feddpa_jax.federated.play import copies, merge_metrics
from feddpa_jax.models.decoder import Model, random_model
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.models.remat import Remat
from feddpa_jax.training.engine import NonFiniteError, make_engine
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.training.rows import Chunk
from feddpa_jax.types import TokenizedExample
from tests.federated.player import player_for, state_of
from tests.training.objectives import ALONE, NOTHING, beside, frozen_of

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


@functools.partial(jax.jit, static_argnums=0)
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


def in_slots(leaf_C: jax.Array, chunk: Chunk) -> jax.Array:
    """The chunk's members' rows at their slots; zeros where no member is."""
    own_C = np.zeros((len(chunk.total_C), *leaf_C.shape[1:]), np.float32)
    own_C[chunk.slots] = np.asarray(leaf_C)[chunk.members]
    return jnp.asarray(own_C)


def train(data, bank, *, frozen=None, phase="local", members=None, dropout=0.0, engine=None):
    """The members' trained adapters, in their order, and the metrics."""
    engine = engine or engine_for(dropout)
    members = np.arange(len(data.names), dtype=np.int32) if members is None else members
    trained, metrics = {}, []
    for chunk in data.chunks(members, 1, phase, data.shapes(2)):
        own_C = jax.tree.map(functools.partial(in_slots, chunk=chunk), bank)
        objective = ALONE if frozen is None else beside()
        found, done = engine.train(
            objective, {"local": own_C}, frozen_of(frozen), chunk, key=jax.random.key(5)
        )
        own_C = found["local"]
        for client, slot in zip(chunk.members.tolist(), chunk.slots.tolist(), strict=True):
            trained[client] = jax.tree.map(lambda leaf, slot=slot: np.asarray(leaf[slot]), own_C)
        metrics.append(done)
    merged = jax.tree.map(lambda *leaves: np.stack(leaves), *(trained[int(c)] for c in members))
    return merged, merge_metrics(metrics)


assert_trees_close = functools.partial(chex.assert_trees_all_close, atol=1e-5, rtol=0)


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


def test_order_of_clients_does_not_matter(tmp_path):
    data, order = make_data(), [2, 0, 3, 1]
    turned = dataclasses.replace(
        data,
        names=tuple(NAMES[i] for i in order),
        examples=tuple(data.examples[i] for i in order),
    )
    results = []
    for place, own in enumerate((data, turned)):
        own = dataclasses.replace(own, participation=0.5)
        folder = tmp_path / str(place)
        player = player_for("feddpa_t", engine_for(0.3), new_adapter, own, folder, "examples")
        results.append(player.play(3, key=0)[-1])
    assert_trees_close(results[0].server, results[1].server)
    assert_trees_close(take(results[0].clients.all(), np.array(order)), results[1].clients.all())


def test_absent_clients_keep_their_bits(tmp_path):
    data = make_data(participation=0.5)
    player = player_for("local", engine_for(0.0), new_adapter, data, tmp_path)
    state = state_of(player, {}, random_bank(4))
    there = data.participants(0)
    assert len(there) == 2
    after, _ = player.round(state, 0)
    before_C, after_C = (own.clients.all()["local"] for own in (state, after))
    for c in range(4):
        same = np.array_equal(before_C["q_proj"]["a"][c], after_C["q_proj"]["a"][c])
        assert same == (c not in there)


def phase_alone(data, members, phase: str, bank, frozen=None):
    """What the members' adapters come to in round 1, each trained by itself."""
    alone = [
        train(data, bank, frozen=frozen, phase=phase, members=np.array([c], np.int32))[0]
        for c in members
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *alone)


def spread(adapter, count: int):
    return jax.tree.map(lambda leaf: jnp.asarray(np.stack([leaf] * count)), adapter)


@pytest.mark.parametrize("kind", ["uniform", "examples"])
def test_a_round_of_fedit_is_the_mean_of_its_participants_copies(tmp_path, kind):
    """Two of four clients, of 2 to 14 examples each, in chunks of one."""
    data = make_data(participation=0.5, clients_per_step=1, seed=1)
    members = data.participants(1).tolist()
    counts = np.array([len(data.examples[c]) for c in members])
    assert len(members) == 2 and counts[0] != counts[1]
    player = player_for("fedit", engine_for(0.0), new_adapter, data, tmp_path, kind, rounds=2)
    global_ = jax.tree.map(lambda leaf: leaf[0], random_bank(1))
    after, metrics = player.round(state_of(player, {"global": global_}), 1)
    copies_C = phase_alone(data, members, "global", spread(global_, 4))
    share_C = counts / counts.sum() if kind == "examples" else np.array([0.5, 0.5])
    assert_trees_close(
        after.server["global"],
        jax.tree.map(lambda leaf: np.tensordot(share_C, leaf, axes=1), copies_C),
    )
    assert set(metrics["global"].losses) == {NAMES[c] for c in members}


def test_a_round_of_feddpa_t_trains_local_beside_the_global_it_received(tmp_path):
    data, bank = make_data(), random_bank(4)
    player = player_for("feddpa_t", engine_for(0.0), new_adapter, data, tmp_path, rounds=2)
    global_ = jax.tree.map(lambda leaf: 2.0 * leaf[3], bank)
    state = state_of(player, {"global": global_}, bank)
    after, metrics = player.round(state, 1)
    assert list(metrics) == ["local", "global"]
    local_C = phase_alone(data, range(4), "local", bank, frozen=global_)
    assert_trees_close(after.clients.all()["local"], local_C)
    copies_C = phase_alone(data, range(4), "global", spread(global_, 4))
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), copies_C)
    assert_trees_close(after.server["global"], mean)
    # In round 0 there is no local phase.
    first, metrics = player.round(state, 0)
    assert list(metrics) == ["global"]
    assert_trees_close(first.clients.all()["local"], bank, atol=0)


def test_a_personalization_is_everybodys_training_of_the_final_global(tmp_path):
    data = make_data(participation=0.5)
    player = player_for("feddpa_f", engine_for(0.0), new_adapter, data, tmp_path, rounds=1)
    global_ = jax.tree.map(lambda leaf: leaf[0], random_bank(1))
    after, _ = player.round(state_of(player, {"global": global_}), 1)
    own_C = phase_alone(data, range(4), "personalization", spread(global_, 4))
    assert_trees_close(after.clients.all()["local"], own_C)
    assert_trees_close(after.server["global"], global_, atol=0)


def test_dropout_follows_the_rounds_key(tmp_path):
    data = make_data()
    results = []
    for place, key in enumerate((0, 0, 1)):
        player = player_for("feddpa_t", engine_for(0.3), new_adapter, data, tmp_path / str(place))
        global_ = jax.tree.map(lambda leaf: leaf[0], random_bank(1))
        state = state_of(player, {"global": global_}, random_bank(4))
        after, _ = player.round(state, 1, key=key)
        results.append((after.server["global"], after.clients.all()["local"]))
    assert_trees_close(results[0], results[1], atol=0)
    for one, other in zip(results[0], results[2], strict=True):
        assert not np.allclose(one["q_proj"]["b"], other["q_proj"]["b"], atol=1e-4)


def test_one_compilation_a_phase_and_shape(base, monkeypatch, tmp_path):
    original = step_module.client_losses
    data = make_data(block_tokens=64)
    engine = make_engine(base, scale=2.0, learning_rate=1e-3)
    player = player_for("feddpa_t", engine, new_adapter, data, tmp_path, rounds=4)
    state, shapes = player.start(), data.shapes(4)
    # The global phase, and from round 1 on the local one; then nothing new.
    for number, most in enumerate((len(shapes), len(shapes), 0, 0)):
        chex.clear_trace_counter()
        counted = chex.assert_max_traces(original, n=most)
        monkeypatch.setattr(step_module, "client_losses", counted)
        state, _ = player.round(state, number)


def test_a_client_that_diverges_is_named():
    data, bank = make_data(), random_bank(4)
    bank["q_proj"]["a"] = bank["q_proj"]["a"].at[2].set(jnp.nan)
    with pytest.raises(NonFiniteError, match=r"client 'clara', local phase"):
        train(data, bank)


def test_frozen_weights_get_no_gradient(base):
    """The step costs two thirds of what a full backward pass would cost."""
    data = make_data()
    chunk = next(data.chunks(np.arange(4), 0, "global", data.shapes(1)))
    rows = jax.tree.map(jnp.asarray, next(iter(chunk.blocks)).rows)
    bank, key_B2 = random_bank(4), jnp.ones((len(rows.client_B), 2), jnp.uint32)

    def loss(bank, base):
        settings = {"mix": ALONE.mix, "scale": 2.0, "dropout": 0.0}
        parts = {"local": bank}
        return step_module.client_losses(base, parts, NOTHING, rows, key_B2, **settings).sum()

    text = jax.jit(jax.grad(loss)).lower(bank, base).as_text()
    ffn_by_width = f"tensor<{CONFIG.width}x{CONFIG.ffn}xf32>"
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert not any(line.split("->")[-1].strip().startswith(ffn_by_width) for line in products)


def test_unequal_clients_waste_little():
    data = make_data(batch_size=8, micro_batch_size=8)
    _, metrics = train(data, random_bank(4))
    assert metrics.real_tokens == sum(map(data.tokens, range(4)))
    longest = max(len(e.tokens_T) for own in data.examples for e in own)
    padded = data.epochs * sum(map(len, data.examples)) * longest
    assert metrics.computed_tokens < 0.65 * padded


def test_copies_and_mean():
    adapter = jax.tree.map(lambda leaf: leaf[0], random_bank(1))
    three = jax.tree.map(
        lambda leaf: leaf * jnp.array([1.0, 2.0, 6.0]).reshape(3, *[1] * (leaf.ndim - 1)),
        copies(adapter, 3, single_mesh()),
    )
    # Uniform: (1 + 2 + 6) / 3 = 3; by examples 1, 1, 2: (1 + 2 + 12) / 4 = 3.75.
    examples = np.array([1, 1, 2])
    assert_trees_close(
        weighted_sum(three, jnp.asarray(shares(examples, "uniform"))),
        jax.tree.map(lambda leaf: 3.0 * leaf, adapter),
    )
    assert_trees_close(
        weighted_sum(three, jnp.asarray(shares(examples, "examples"))),
        jax.tree.map(lambda leaf: 3.75 * leaf, adapter),
    )


def test_remat_changes_nothing_but_memory(base):
    data, bank = make_data(), random_bank(4)
    plain, _ = train(data, bank, dropout=0.3)
    engine = make_engine(base, scale=2.0, dropout=0.3, learning_rate=1e-2, remat="layer")
    again, _ = train(data, bank, engine=engine)
    assert_trees_close(plain, again)
    chunk = next(data.chunks(np.arange(4), 0, "global", data.shapes(1)))
    block = next(iter(chunk.blocks))
    rows, key_B2 = block.rows, jnp.ones((len(block.rows.client_B), 2), jnp.uint32)

    def residuals(remat: Remat) -> int:
        def loss(bank):
            settings = {"mix": ALONE.mix, "scale": 2.0, "dropout": 0.0}
            return step_module.client_losses(
                base, {"local": bank}, NOTHING, rows, key_B2, remat=remat, **settings
            ).sum()

        back = jax.eval_shape(lambda bank: jax.vjp(loss, bank)[1], bank)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(back))

    assert residuals("layer") < 0.6 * residuals("none")
