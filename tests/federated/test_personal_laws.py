"""Laws of Ditto, FedALT, FDLoRA and FedLEASE that no oracle is needed for."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.adapters.lora import Adapter, bank_of, init_adapter
from feddpa_jax.federated.build import with_proximal
from feddpa_jax.federated.method import FedState, Part
from feddpa_jax.models.decoder import Model, causal_mask, random_model
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.training.engine import Engine, make_engine
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.types import TokenizedExample, UserError
from tests.federated.player import Player, player_for

pytestmark = pytest.mark.usefixtures("shared_steps")

CONFIG = ModelConfig(31, 8, 2, 2, 1, 4, 12)
SIZES = {target: CONFIG.target_sizes()[target] for target in ("q_proj", "up_proj")}
NEW = functools.partial(init_adapter, sizes=SIZES, layers=2, rank=2)
NAMES = ("w", "x", "y", "z")
METHODS_HERE = {
    "ditto": {"strength": 0.5},
    "fedalt": {},
    "fdlora": {"sync_every": 9, "fusion_examples": 2},
    "fedlease": {"clusters": 2},
}


@pytest.fixture(scope="module")
def data() -> TrainingData:
    draw = np.random.default_rng(0)
    examples = tuple(
        tuple(TokenizedExample(draw.integers(1, 31, 6).astype(np.int32), 3) for _ in range(count))
        for count in (4, 2, 3, 5)
    )
    return TrainingData(NAMES, examples, 0, 1, 2, 2, shuffle=False)


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def engine(model: Model) -> Engine:
    return make_engine(model, scale=2.0, learning_rate=1e-2, dropout=0.1)


@pytest.fixture
def player(engine: Engine, data: TrainingData, tmp_path: Path) -> Callable[..., Player]:
    folders = (tmp_path / str(number) for number in itertools.count())

    def make(name: str, participation: float = 1.0, **more: Any) -> Player:
        some = dataclasses.replace(data, participation=participation)
        return player_for(name, engine, NEW, some, next(folders), **more)

    return make


def same(x: Any, y: Any) -> bool:
    """Bit for bit, NaN too."""
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    )


def gap(x: Any, y: Any) -> float:
    leaves = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in leaves)


def mean(trees_C: Any, members: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[list(members)].mean(axis=0), trees_C)


def answers(player: Player, state: FedState) -> Any:
    members = np.arange(len(NAMES))
    own_C = jax.tree.map(jnp.asarray, state.clients.all())
    return player.method.answers(state.server, own_C, members)


def hidden(model: Model, global_C: Adapter | None, local_C: Adapter, weight: float) -> jax.Array:
    """Each client's states on the same tokens, its own adapter with a weight."""
    tokens_BT = jnp.tile(jnp.arange(1, 7)[None], (len(NAMES), 1))
    branches = dual_branches(
        global_C,
        local_C,
        jnp.arange(len(NAMES)),
        jnp.full((len(NAMES),), weight),
        scale=2.0,
    )
    place_BT = jnp.tile(jnp.arange(6)[None], (len(NAMES), 1))
    return model.hidden(tokens_BT, place_BT, causal_mask(jnp.ones_like(place_BT)), branches)[0]


def test_a_gate_at_one_half_is_a_fixed_mix(player, model):
    alt = player("fedalt")
    state = alt.play(2)[-1]
    found = answers(alt, state)
    even = {name: np.zeros_like(leaves["gate"]) for name, leaves in found.others["gate"].items()}
    halves = {name: {**leaves, "gate": even[name]} for name, leaves in found.others["gate"].items()}
    fixed_BTD = hidden(model, found.global_C, found.local_C, 0.5)
    assert gap(hidden(model, None, halves, 1.0), fixed_BTD) < 1e-6
    # The trained gate is another mix, and so is each side alone.
    assert gap(hidden(model, None, found.others["gate"], 1.0), fixed_BTD) > 1e-5
    assert gap(hidden(model, found.global_C, found.local_C, 1.0), fixed_BTD) > 1e-5


@pytest.mark.parametrize("participation", [1.0, 0.5, 0.25])
def test_the_rest_of_the_world_by_hand(player, participation):
    """What all others have sent last, and nothing of whoever has sent nothing."""
    alt = player("fedalt", participation)
    states = alt.play(4)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(answers(alt, states[0]).global_C))
    sent: dict[int, Any] = {}
    for number, state in enumerate(states[1:]):
        for c in alt.data.participants(number).tolist():
            sent[c] = jax.tree.map(lambda leaf, c=c: leaf[c], state.clients.all()["local"])
        assert float(state.server["senders"]["all"]["count"]) == len(sent)
        rest_C = answers(alt, state).global_C
        for c in range(len(NAMES)):
            others = [tree for m, tree in sent.items() if m != c]
            own = jax.tree.map(lambda leaf, c=c: np.asarray(leaf)[c], rest_C)
            if others:
                expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *others)
                assert gap(own, expected) < 1e-6
            else:
                assert not any(np.any(leaf) for leaf in jax.tree.leaves(own))
    assert 1 <= len(sent) <= 4


def test_ditto_without_its_pull_is_local_training(player):
    """The same bits, dropout and all, if both start from the same adapter; and w is FedIT's."""
    free, near = (player("ditto", 0.5, options={"strength": s}) for s in (0.0, 5.0))
    alone = player("local", 0.5)
    parts = {"global": Part("server", NEW), "local": Part("client", "global")}
    alone = alone._replace(method=dataclasses.replace(alone.method, parts=parts))
    ours, theirs = free.play(3), alone.play(3)
    shared = player("fedit", 0.5).play(3)
    for number in range(4):
        own_C = ours[number].clients.all()["local"]
        assert same(own_C, theirs[number].clients.all()["local"])
        assert same(ours[number].server, shared[number].server)
    pulled = near.play(3)[-1]
    assert gap(pulled.clients.all(), ours[-1].clients.all()) > 1e-4
    assert same(pulled.server, ours[-1].server)
    first_C = ours[0].clients.all()["local"]
    assert same(first_C, jax.tree.map(lambda w: np.stack([w] * 4), ours[0].server["global"]))


def test_fedprox_without_its_pull_is_fedavg(player):
    fedit = player("fedit")
    zero = fedit._replace(method=with_proximal(fedit.method, 0.0))
    near = fedit._replace(method=with_proximal(fedit.method, 5.0))
    assert same(zero.play(2)[-1].server, fedit.play(2)[-1].server)
    assert gap(near.play(2)[-1].server, fedit.play(2)[-1].server) > 1e-5


def test_fdlora_that_takes_the_mean_is_fedit_from_the_first_stage(player):
    options = {"outer_learning_rate": 1.0, "outer_momentum": 0.0, "sync_every": 99}
    dual, fedit = player("fdlora", 0.5, options=options), player("fedit", 0.5)
    states = dual.play(3)
    # Nothing has synced: the personal adapters are still those of the first stage, of everybody.
    personal_C = states[1].clients.all()["local"]
    assert same(states[3].clients.all()["local"], personal_C)
    assert min(gap(mean(personal_C, [c]), states[0].server["global"]) for c in range(4)) > 1e-3
    shared = FedState({"global": mean(personal_C, range(4))}, fedit.start().clients)
    for number in range(3):
        shared, _ = fedit.round(shared, number)
        assert gap(states[number + 1].server["global"], shared.server["global"]) < 1e-6
    step = player("fdlora", 0.5, options=options | {"outer_momentum": 0.5}).play(3)
    # By hand: the first step is 1.5 times the change from the first stage's mean.
    start = mean(personal_C, range(4))
    once = jax.tree.map(
        lambda w, m: w - 1.5 * (w - m), start, jax.tree.map(np.asarray, states[1].server["global"])
    )
    assert gap(step[1].server["global"], once) < 1e-6


def test_fdlora_keeps_its_own_copy_where_it_syncs(player):
    """The copy that the client trained, not the mean; and only whoever took part."""
    dual = player("fdlora", 0.5, options={"sync_every": 2})
    states = dual.play(2)
    before_C, after_C = (state.clients.all()["local"] for state in states[1:])
    members = dual.data.participants(1).tolist()
    for c in range(4):
        moved = gap(mean(before_C, [c]), mean(after_C, [c]))
        assert (moved > 1e-3) == (c in members)
    # With outer_learning_rate 1 and no momentum, the server's part is the mean of these copies.
    plain = {"sync_every": 2, "outer_learning_rate": 1.0, "outer_momentum": 0.0}
    last = player("fdlora", 0.5, options=plain).play(2)[-1]
    assert gap(mean(last.clients.all()["local"], members), last.server["global"]) < 1e-6


def test_fusion_weights_take_either_adapter_or_both(player):
    dual = player("fdlora", rounds=2)
    state, metrics = dual.round(dual.play(2)[-1], 2)
    for name, (before, after) in metrics["fusion"].losses.items():
        assert np.isfinite(before) and after < before + 0.05, name
    own_C, shared_1 = state.clients.all(), bank_of(state.server["global"])
    for weights, expected in (((1.0, 0.0), own_C["local"]), ((0.0, 1.0), shared_1)):
        fusion = {"all": {"weights": np.tile(np.array([weights], np.float32), (4, 1))}}
        found = dual.method.answers(state.server, {**own_C, "fusion": fusion}, np.arange(4))
        assert gap(found.others["fused"], jax.tree.map(lambda x: np.tile(x, 1), expected)) == 0.0
    assert found.others["fused"]["q_proj"]["a"].shape == own_C["local"]["q_proj"]["a"].shape


def test_one_cluster_is_fedit_from_the_warm_up(player):
    lease, fedit = (
        player("fedlease", 0.5, options={"clusters": 1}),
        player("fedit", 0.5),
    )
    # Both phases' dropout follows the round's key.
    (phase,) = fedit.method.phases
    fedit = fedit._replace(
        method=dataclasses.replace(fedit.method, phases=(dataclasses.replace(phase, stream=None),))
    )
    states = lease.play(3)
    warm_C = states[1].clients.all()["warm"]
    shared = FedState({"global": mean(warm_C, range(4))}, fedit.start().clients)
    for number in range(3):
        shared, _ = fedit.round(shared, number)
        assert gap(mean(states[number + 1].server["expert"], [0]), shared.server["global"]) < 1e-6


def test_a_cluster_without_a_participant_keeps_what_it_has(player):
    lease = player("fedlease", 0.25, options={"clusters": 3})
    states = lease.play(4)
    of_C = np.asarray(states[1].server["clusters"]["all"]["of"])
    assert sorted(set(of_C.tolist())) == [0, 1, 2]
    for number in range(1, 4):
        before, after = states[number].server, states[number + 1].server
        (member,) = lease.data.participants(number)
        for cluster in range(3):
            moved = gap(mean(before["expert"], [cluster]), mean(after["expert"], [cluster]))
            assert (moved > 1e-4) == (cluster == of_C[member])


# The parts that no other client may learn anything of, after the round that makes them.
PRIVATE = [("ditto", "local"), ("fdlora", "local"), ("fdlora", "fusion"), ("fedlease", "warm")]
# FedALT sends what a client has trained beside its gate: only who rests may have a bad one.
TRIED = [(*private, share) for private in PRIVATE for share in (1.0, 0.5)]
TRIED += [("fedalt", "gate", 0.5)]


@pytest.mark.parametrize(("name", "part", "participation"), TRIED)
def test_a_private_part_reaches_nobody_else(player, monkeypatch, name, part, participation):
    """One client's is NaN from the second round on: all others keep their bits, and the server."""
    rests = name == "fedalt"
    monkeypatch.setattr("feddpa_jax.training.engine._check_finite", lambda chunk, finite_C: None)
    method = player(name, participation, options=METHODS_HERE[name], rounds=2)
    state = method.play(1)[-1]
    members = method.data.participants(1).tolist()
    victim = next(c for c in range(4) if (c in members) != rests)
    own_1 = state.clients.take([victim])
    spoilt_1 = {**own_1, part: jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), own_1[part])}
    spoilt = FedState(state.server, state.clients.put([victim], spoilt_1, 0))
    clean = state
    for number in (1, 2):
        clean, spoilt = (method.round(each, number)[0] for each in (clean, spoilt))
        assert same(clean.server, spoilt.server)
        others = [c for c in range(4) if c != victim]
        assert same(clean.clients.take(others), spoilt.clients.take(others))
        if rests:
            break
    assert any(np.isnan(leaf).any() for leaf in jax.tree.leaves(spoilt.clients.take([victim])))


@pytest.mark.parametrize("name", METHODS_HERE)
def test_chunks_of_clients_train_as_all_at_once(player, name):
    whole, parts = (player(name, options=METHODS_HERE[name], rounds=2) for _ in range(2))
    parts = parts._replace(data=dataclasses.replace(parts.data, clients_per_step=2))
    ours, theirs = (p.round(p.play(2)[-1], 2)[0] for p in (whole, parts))
    assert gap(ours.server, theirs.server) < 1e-5
    assert gap(ours.clients.all(), theirs.clients.all()) < 1e-5


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ditto", {"strength": -1.0}, "strength is -1.0"),
        ("fdlora", {"sync_every": 0}, "sync_every is 0"),
        ("fdlora", {"fusion_examples": 0}, "fusion_examples is 0"),
        ("fdlora", {"outer_momentum": 1.0}, "outer_momentum 1.0"),
        ("fedlease", {"clusters": 5}, "clusters is 5 for 4 clients"),
        ("fedlease", {"clusters": -1}, "clusters is -1"),
        ("fedlease", {"most_clusters": 1}, "most_clusters is 1"),
    ],
)
def test_options_out_of_range(player, name, options, said):
    with pytest.raises(UserError, match=said) as error:
        player(name, options=options)
    assert "\n" not in str(error.value)
