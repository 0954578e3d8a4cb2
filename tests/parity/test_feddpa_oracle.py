"""FedDPA-T and -F against the PyTorch loop of the reference: every loss, the final adapters."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.hf.families import read_hf_config
from feddpa_jax.models.decoder import Model, from_parameters
from feddpa_jax.training.engine import make_engine
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.types import TokenizedExample
from tests.federated.player import Player, player_for, state_of
from tests.parity.reference_loop import hf_to_parameters, run_feddpa_f, run_feddpa_t

pytestmark = pytest.mark.usefixtures("shared_steps")

LAYERS, RANK, ALPHA, RATE, LOCAL_WEIGHT = 3, 4, 8.0, 3e-3, 0.3
TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj")
COUNTS = (5, 9, 7)
ROUNDS = 2


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def base(reference: LlamaForCausalLM) -> Model:
    config = read_hf_config(reference.config.to_dict(), "test")
    return from_parameters(config, hf_to_parameters(reference))


@pytest.fixture(scope="module")
def data() -> TrainingData:
    draw = np.random.default_rng(0)

    def example() -> TokenizedExample:
        length = int(draw.integers(5, 14))
        tokens_T = draw.integers(1, 40, length).astype(np.int32)
        return TokenizedExample(tokens_T, int(draw.integers(1, length - 1)))

    return TrainingData(
        names=("a", "b", "c"),
        examples=tuple(tuple(example() for _ in range(n)) for n in COUNTS),
        seed=5,
        epochs=2,
        batch_size=4,
        micro_batch_size=3,
        block_tokens=64,
    )


def random_adapter(base: Model, seed: int) -> dict:
    draw = np.random.default_rng(seed)
    sizes = base.config.target_sizes()
    return {
        target: {
            "a": draw.normal(0, 0.3, (LAYERS, sizes[target][0], RANK)).astype(np.float32),
            "b": draw.normal(0, 0.3, (LAYERS, RANK, sizes[target][1])).astype(np.float32),
        }
        for target in TARGETS
    }


def reference_updates(data: TrainingData, client: int, number: int, phase: str) -> list:
    examples = data.examples[client]
    return [
        [[tuple(examples[i][:2]) for i in micro] for micro in update]
        for update in data.updates_of(client, number, phase)
    ]


def player_of(
    name: str, base: Model, data: TrainingData, folder: Path, *, detach: bool = False
) -> Player:
    engine = make_engine(base, scale=ALPHA / RANK, learning_rate=RATE)
    sizes = {target: base.config.target_sizes()[target] for target in TARGETS}
    new = functools.partial(init_adapter, sizes=sizes, layers=base.config.layers, rank=RANK)
    gradient: Any = "detached" if detach else "exact"
    return player_for(
        name,
        engine,
        new,
        data,
        folder,
        rounds=ROUNDS,
        local_weight=LOCAL_WEIGHT,
        frozen_branch_gradient=gradient,
    )


def stacked(adapters: Sequence[dict]) -> dict:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


assert_close = functools.partial(chex.assert_trees_all_close, atol=1e-4, rtol=0)


@pytest.mark.parametrize("detached", [False, True])
def test_feddpa_t(reference, base, data, detached, tmp_path):
    global_, locals_ = random_adapter(base, 0), [random_adapter(base, s) for s in (1, 2, 3)]
    phases = [("global",), ("global", "local")]
    batches = [
        [{p: reference_updates(data, c, r, p) for p in phases[r]} for c in range(len(COUNTS))]
        for r in range(ROUNDS)
    ]
    oracle = run_feddpa_t(
        reference,
        global_,
        locals_,
        batches,
        alpha=ALPHA,
        learning_rate=RATE,
        local_weight=LOCAL_WEIGHT,
        detached=detached,
    )
    player = player_of("feddpa_t", base, data, tmp_path, detach=detached)
    state = state_of(player, {"global": jax.tree.map(jnp.asarray, global_)}, stacked(locals_))
    for r in range(ROUNDS):
        state, metrics = player.round(state, r, rate=RATE)
        for phase in phases[r]:
            for c, name in enumerate(data.names):
                ours, theirs = metrics[phase].losses[name], oracle.losses[r][c][phase]
                np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
        assert_close(state.server["global"], oracle.global_by_round[r])
    local_C = state.clients.all()["local"]
    for c in range(len(COUNTS)):
        assert_close(jax.tree.map(lambda leaf, c=c: leaf[c], local_C), oracle.locals_[c])


def test_detached_gradients_differ_from_exact(base, data, tmp_path):
    """The two settings of the test above do not give the same numbers by accident."""
    global_, locals_C = random_adapter(base, 0), stacked([random_adapter(base, 1)] * 3)
    ends = []
    for detach in (False, True):
        player = player_of("feddpa_t", base, data, tmp_path / str(detach), detach=detach)
        state = state_of(player, {"global": jax.tree.map(jnp.asarray, global_)}, locals_C)
        state, _ = player.round(state, 1, rate=RATE)
        ends.append(state.clients.all()["local"])
    gap = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), *ends)
    assert max(jax.tree.leaves(gap)) > 1e-3


def test_feddpa_f(reference, base, data, tmp_path):
    global_ = random_adapter(base, 0)
    batches = [
        [{"global": reference_updates(data, c, r, "global")} for c in range(len(COUNTS))]
        for r in range(ROUNDS)
    ]
    last = [reference_updates(data, c, ROUNDS, "personalization") for c in range(len(COUNTS))]
    oracle = run_feddpa_f(reference, global_, batches, last, alpha=ALPHA, learning_rate=RATE)
    player = player_of("feddpa_f", base, data, tmp_path)
    state = state_of(player, {"global": jax.tree.map(jnp.asarray, global_)})
    for r in range(ROUNDS):
        state, metrics = player.round(state, r, rate=RATE)
        for c, name in enumerate(data.names):
            np.testing.assert_allclose(
                metrics["global"].losses[name], oracle.losses[r][c]["global"], atol=1e-4, rtol=0
            )
    state, metrics = player.round(state, ROUNDS, rate=RATE)
    assert_close(state.server["global"], oracle.global_)
    local_C = state.clients.all()["local"]
    for c, name in enumerate(data.names):
        np.testing.assert_allclose(
            metrics["personalization"].losses[name],
            oracle.personalization_losses[c],
            atol=1e-4,
            rtol=0,
        )
        assert_close(jax.tree.map(lambda leaf, c=c: leaf[c], local_C), oracle.locals_[c])
