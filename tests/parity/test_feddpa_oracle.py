"""FedDPA-T and -F against the PyTorch loop of the reference: every loss, the final adapters."""

import functools
from collections.abc import Sequence
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from feddpa_jax.federated.method import METHODS, FedState, Parts, need
from feddpa_jax.hf.families import read_hf_config
from feddpa_jax.models.decoder import Model, from_parameters
from feddpa_jax.training.engine import make_engine
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.types import TokenizedExample
from tests.federated.parts import local_of, parts_for
from tests.parity.reference_loop import hf_to_parameters, run_feddpa_f, run_feddpa_t

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
        [[tuple(examples[i]) for i in micro] for micro in update]
        for update in data.updates_of(client, number, phase)
    ]


def build_parts(base: Model, data: TrainingData, folder: Path, *, detach: bool = False) -> Parts:
    engine = make_engine(
        base,
        scale=ALPHA / RANK,
        learning_rate=RATE,
        local_weight=LOCAL_WEIGHT,
        detach=detach,
    )
    parts = parts_for(engine, lambda key: {}, data, folder)
    return parts._replace(local_weight=LOCAL_WEIGHT)


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
    parts = build_parts(base, data, tmp_path, detach=detached)
    method = METHODS["feddpa_t"].build(parts)
    state = FedState(jax.tree.map(jnp.asarray, global_), local_of(parts, stacked(locals_)))
    shape = data.shapes(ROUNDS)
    for r in range(ROUNDS):
        state, metrics = method.round(state, data.round(r, shape), key=jax.random.key(r))
        for phase in phases[r]:
            for c, name in enumerate(data.names):
                ours, theirs = metrics[phase].losses[name], oracle.losses[r][c][phase]
                np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
        assert_close(need(state.global_), oracle.global_by_round[r])
    local_C = need(state.local).all()
    for c in range(len(COUNTS)):
        assert_close(jax.tree.map(lambda leaf, c=c: leaf[c], local_C), oracle.locals_[c])


def test_detached_gradients_differ_from_exact(base, data, tmp_path):
    """The two settings of the test above do not give the same numbers by accident."""
    global_, locals_C = random_adapter(base, 0), stacked([random_adapter(base, 1)] * 3)
    shape = data.shapes(ROUNDS)
    ends = []
    for detach in (False, True):
        parts = build_parts(base, data, tmp_path / str(detach), detach=detach)
        method = METHODS["feddpa_t"].build(parts)
        state = FedState(jax.tree.map(jnp.asarray, global_), local_of(parts, locals_C))
        state, _ = method.round(state, data.round(1, shape), key=jax.random.key(0))
        ends.append(need(state.local).all())
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
    method = METHODS["feddpa_f"].build(build_parts(base, data, tmp_path))
    state = FedState(jax.tree.map(jnp.asarray, global_), None)
    shape = data.shapes(ROUNDS)
    for r in range(ROUNDS):
        state, metrics = method.round(state, data.round(r, shape), key=jax.random.key(r))
        for c, name in enumerate(data.names):
            np.testing.assert_allclose(
                metrics["global"].losses[name], oracle.losses[r][c]["global"], atol=1e-4, rtol=0
            )
    assert method.personalize is not None
    state, metrics = method.personalize(
        state, data.round(ROUNDS, shape, everybody=True), key=jax.random.key(9)
    )
    assert_close(need(state.global_), oracle.global_)
    local_C = need(state.local).all()
    for c, name in enumerate(data.names):
        np.testing.assert_allclose(
            metrics["personalization"].losses[name],
            oracle.personalization_losses[c],
            atol=1e-4,
            rtol=0,
        )
        assert_close(jax.tree.map(lambda leaf, c=c: leaf[c], local_C), oracle.locals_[c])
