"""Greedy decoding: cached equals uncached, mixed batches equal rows alone, stops at the end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.generate.decode import greedy, prefill
from feddpa_jax.models.config import ModelConfig
from feddpa_jax.models.decoder import causal_mask, random_model

CONFIG = ModelConfig(23, 16, 2, 4, 2, 6, 24)
SCALE, NEW = 2.0, 7
PROMPTS = ([3, 4, 5, 6, 7], [9], [2, 2, 8], [11, 12, 13, 14])
CLIENT_B = jnp.array([1, 0, 1, 2])
WEIGHT_B = jnp.array([0.2, 0.9, 0.5, 0.0])


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, jax.random.key(2))


def random_adapter(seed: int) -> dict:
    sizes = {t: CONFIG.target_sizes()[t] for t in ("q_proj", "v_proj", "up_proj")}
    fresh = init_adapter(jax.random.key(seed), sizes, layers=2, rank=2)
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(seed + 9), leaf.shape), fresh
    )


GLOBAL = random_adapter(0)
LOCAL_C = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(random_adapter, (1, 2, 3)))


def branches_of(rows: slice):
    return dual_branches(GLOBAL, LOCAL_C, CLIENT_B[rows], WEIGHT_B[rows], scale=SCALE)


@functools.partial(jax.jit, static_argnames=("eos_id", "new"))
def answer(model, tokens_BT, length_B, branches, *, eos_id=22, new=NEW):
    prompt = prefill(model, branches, tokens_BT, length_B, tokens_BT.shape[1] + new)
    return greedy(
        model,
        branches,
        prompt.last_hidden_BD,
        prompt.cache,
        length_B,
        eos_id=eos_id,
        pad_id=0,
        max_new_tokens=new,
    )


def batch(prompts) -> tuple[jax.Array, jax.Array]:
    length_B = np.array([len(prompt) for prompt in prompts])
    # Padding is full of a token that would be noticed.
    tokens_BT = np.full((len(prompts), length_B.max()), 17)
    for b, prompt in enumerate(prompts):
        tokens_BT[b, : len(prompt)] = prompt
    return jnp.asarray(tokens_BT, jnp.int32), jnp.asarray(length_B, jnp.int32)


def uncached(model, row: int, eos_id: int) -> list[int]:
    """The whole sequence anew for every token."""
    sequence = list(PROMPTS[row])
    for _ in range(NEW):
        T = len(sequence)
        hidden_BTD, _ = model.hidden(
            jnp.array([sequence]),
            jnp.arange(T)[None],
            causal_mask(jnp.ones((1, T), jnp.int32)),
            branches_of(slice(row, row + 1)),
        )
        token = int(jnp.argmax(model.logits(hidden_BTD[0, -1])))
        if token == eos_id:
            break
        sequence.append(token)
    return sequence[len(PROMPTS[row]) :]


def test_cached_and_batched_equals_uncached_rows(model):
    # The end token is one that row 0 would say third, so that some rows end early.
    eos_id = uncached(model, 0, -1)[2]
    decoded = answer(model, *batch(PROMPTS), branches_of(slice(None)), eos_id=eos_id)
    lengths = []
    for row in range(len(PROMPTS)):
        expected = uncached(model, row, eos_id)
        lengths.append(len(expected))
        assert decoded.tokens_BT[row, : len(expected)].tolist() == expected
        assert (decoded.tokens_BT[row, len(expected) :] == 0).all()
    assert decoded.length_B.tolist() == lengths
    assert min(lengths) <= 2
    assert len(set(lengths)) > 1


def test_clients_and_weights_matter(model):
    """Otherwise the test above would pass with the adapters left out."""
    tokens_BT, length_B = batch(PROMPTS)
    mixed = answer(model, tokens_BT, length_B, branches_of(slice(None)))
    bare = answer(model, tokens_BT, length_B, ())
    other = dual_branches(GLOBAL, LOCAL_C, CLIENT_B[::-1], 1.0 - WEIGHT_B, scale=SCALE)
    assert not np.array_equal(mixed.tokens_BT, bare.tokens_BT)
    assert not np.array_equal(mixed.tokens_BT, answer(model, tokens_BT, length_B, other).tokens_BT)


def test_one_new_token(model):
    decoded = answer(model, *batch(PROMPTS), branches_of(slice(None)), new=1)
    assert decoded.tokens_BT.shape == (4, 1)
    assert decoded.tokens_BT[:, 0].tolist() == [uncached(model, r, -1)[0] for r in range(4)]
