"""The same numbers on any mesh of eight emulated devices, and nothing sent that need not be."""

import re

import chex
import jax
import numpy as np
import pytest

from feddpa_jax.devices.mesh import CLIENTS, base_spec, make_mesh, put, put_base
from feddpa_jax.federated.aggregate import weighted_sum
from feddpa_jax.federated.play import copies
from feddpa_jax.models.decoder import Model, random_model
from feddpa_jax.models.layer_stack import stacked
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.training.engine import make_engine
from feddpa_jax.training.step import make_step
from feddpa_jax.types import UserError
from tests.federated.player import player_for
from tests.training.objectives import ALONE, NOTHING
from tests.training.test_engine import make_data, new_adapter

CONFIG = ModelConfig(64, 16, 2, 4, 2, 6, 24)
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def collectives(text: str) -> list[str]:
    """The collectives of a compiled program, by kind."""
    kinds = "|".join(COLLECTIVES)
    return re.findall(rf"= \S+ ({kinds})(?:-start)?\(", text)


def on_mesh(clients: int, model: int, mode: str = "tensor", looped: bool = False):
    mesh = make_mesh(clients, model)
    base = random_model(CONFIG, jax.random.key(3))
    params = stacked(base.params, CONFIG) if looped else base.params
    base = Model(put_base(params, mesh, mode), base.definition, base.config)
    return (
        mesh,
        base,
        make_engine(base, mesh=mesh, base_mode=mode, scale=2.0, dropout=0.3, learning_rate=1e-2),
    )


def play(folder, clients: int, model: int, mode: str = "tensor", looped: bool = False, **changes):
    """Two rounds of FedDPA-T."""
    _, _, engine = on_mesh(clients, model, mode, looped)
    data = make_data(shards=clients, **changes)
    player = player_for("feddpa_t", engine, new_adapter, data, folder, rounds=2)
    state = player.start()
    for number in range(2):
        state, metrics = player.round(state, number)
    return jax.device_get((state.server["global"], state.clients.all()["local"])), metrics


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory: pytest.TempPathFactory):
    return play(tmp_path_factory.mktemp("one"), 1, 1)


@pytest.mark.parametrize(
    ("clients", "model", "mode", "changes"),
    [
        (4, 1, "tensor", {}),
        (8, 1, "tensor", {}),  # more devices than clients
        (2, 1, "tensor", {"clients_per_step": 2}),
        (2, 2, "tensor", {}),
        (2, 4, "full", {}),
        (2, 2, "tensor", {"looped": True}),
        (2, 4, "full", {"looped": True}),
    ],
)
def test_same_numbers_as_one_device(tmp_path, on_one_device, clients, model, mode, changes):
    whole, metrics = on_one_device
    other, other_metrics = play(tmp_path, clients, model, mode, **changes)
    chex.assert_trees_all_close(whole, other, atol=2e-5, rtol=0)
    for phase in metrics:
        for name, curve in metrics[phase].losses.items():
            np.testing.assert_allclose(other_metrics[phase].losses[name], curve, atol=2e-5)


def step_on(mesh, base, clients: int, mode: str = "tensor"):
    """The step, and what it is called with, for eight clients."""
    data = make_data(shards=clients)
    chunk = next(data.chunks(np.arange(4), 0, "global", data.shapes(2)))
    block = next(iter(chunk.blocks))
    adapter = new_adapter(jax.random.key(0))
    bank = {"local": copies(adapter, len(chunk.total_C), mesh)}
    settings = {"scale": 2.0, "dropout": 0.3, "max_grad_norm": 1.0, "remat": "none"}
    programs = make_step(mesh, ALONE, base_mode=mode, **settings)
    state = programs.start(bank)
    keys = np.zeros((len(chunk.total_C), 2), np.uint32)
    own = put((block.rows, keys, chunk.total_C, block.ends_C), mesh, CLIENTS)
    return programs.step, (base, state, NOTHING, *own, np.float32(1e-2))


def test_client_state_is_split_and_nothing_crosses_clients():
    mesh, base, _ = on_mesh(8, 1)
    step, given = step_on(mesh, base, 8)
    assert collectives(step.lower(*given).compile().as_text()) == []
    state, loss_C = step(*given)
    for leaf in jax.tree.leaves((state, loss_C)):
        assert leaf.sharding.shard_shape(leaf.shape)[0] == leaf.shape[0] // 8
    for leaf in jax.tree.leaves(base.params):
        assert leaf.sharding.is_fully_replicated


@pytest.mark.parametrize("mode", ["tensor", "full"])
def test_a_split_base_takes_its_share_of_memory(mode):
    _, whole, _ = on_mesh(1, 1)
    mesh, base, _ = on_mesh(2, 4, mode)

    def share(model: Model) -> int:
        return sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(model.params)
        )

    assert share(base) < 0.35 * share(whole)
    step, given = step_on(mesh, base, 2, mode)
    text = step.lower(*given).compile().as_text()
    found = set(collectives(text))
    assert ("all-gather" in found) if mode == "full" else ("all-reduce" in found)


def test_the_average_is_one_all_reduce():
    """Of copies 1 to 16 times as large, at shares 0 to 15 of 120: sum of c (c + 1) / 120 times."""
    mesh = make_mesh(8, 1)
    adapter = jax.tree.map(lambda leaf: leaf + 0.5, new_adapter(jax.random.key(0)))
    bank = jax.tree.map(
        lambda leaf: np.stack([np.asarray(leaf) * (c + 1) for c in range(16)]), adapter
    )
    bank = put(bank, mesh, CLIENTS)
    share_C = put(np.arange(16, dtype=np.float32) / 120, mesh, CLIENTS)
    text = weighted_sum.lower(bank, share_C).compile().as_text()
    assert text and collectives(text) == ["all-reduce"]
    expected = sum(c * (c + 1) for c in range(16)) / 120
    mean = jax.tree.map(lambda leaf: expected * np.asarray(leaf), adapter)
    chex.assert_trees_all_close(weighted_sum(bank, share_C), mean, rtol=1e-5)


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match=r"mesh: 3 x 4 devices .* there are 8; lower one"):
        make_mesh(3, 4)


def test_what_a_mesh_takes():
    """Clients take what the base leaves; a base lies on devices side by side."""
    assert make_mesh(None, 2).shape == {"clients": 4, "model": 2}
    assert make_mesh(None, 3).shape == {"clients": 2, "model": 3}
    assert make_mesh(2, 4).shape == {"clients": 2, "model": 4}
    devices = jax.devices()
    assert make_mesh(2, 2).devices.tolist() == [devices[0:2], devices[2:4]]
    assert make_mesh(1, 2, devices[5:]).devices.tolist() == [devices[5:7]]
    with pytest.raises(UserError, match=r"mesh: 1 x 9 devices"):
        make_mesh(None, 9)


@pytest.mark.parametrize(
    ("path", "shape", "mode", "size", "spec"),
    [
        ("layers.0.attention.q_proj.kernel", (16, 32), "tensor", 4, [None, "model"]),
        ("layers.0.attention.v_proj.bias", (32,), "tensor", 4, ["model"]),
        ("layers.1.attention.o_proj.kernel", (32, 16), "tensor", 4, ["model"]),
        ("layers.1.mlp.up_proj.kernel", (16, 24), "tensor", 4, [None, "model"]),
        ("embed.embedding", (64, 16), "tensor", 4, ["model"]),
        ("lm_head.kernel", (16, 64), "tensor", 4, [None, "model"]),
        ("layers.0.attention_norm.scale", (16,), "tensor", 4, []),
        ("layers.0.attention.q_proj.kernel", (16, 30), "tensor", 4, []),  # does not divide
        ("layers.0.attention.q_proj.kernel", (16, 32), "tensor", 1, []),
        ("layers.0.attention.q_proj.kernel", (16, 32), "full", 4, [None, "model"]),
        ("layers.1.attention.o_proj.kernel", (32, 16), "full", 4, ["model"]),
        ("layers.0.attention_norm.scale", (16,), "full", 4, ["model"]),
        ("layers.0.attention.q_proj.kernel", (16, 32), "whole", 4, []),
    ],
)
def test_how_a_base_is_split(path, shape, mode, size, spec):
    assert list(base_spec(path, shape, mode, size)) == spec
