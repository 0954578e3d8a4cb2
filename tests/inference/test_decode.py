"""Prefill and greedy decoding: cached equals uncached, rows of a batch equal rows alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.adapters.lora import bank_of, init_adapter
from feddpa_jax.inference.decode import decode as greedy
from feddpa_jax.inference.decode import prefill, step
from feddpa_jax.models.decoder import Model, causal_mask, random_model
from feddpa_jax.models.kv_cache import extended
from feddpa_jax.models.model_config import ModelConfig

CONFIG = ModelConfig(23, 16, 2, 4, 2, 6, 24)
SCALE, NEW = 2.0, 7
PROMPTS = ([3, 4, 5, 6, 7], [9], [2, 2, 8], [11, 12, 13, 14])
SLOTS = 5 + NEW
CLIENT_B = jnp.array([1, 0, 1, 2])
WEIGHT_B = jnp.array([0.2, 0.9, 0.5, 0.0])


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, jax.random.key(2))


@jax.jit
def random_adapter(seed: int) -> dict:
    sizes = {t: CONFIG.target_sizes()[t] for t in ("q_proj", "v_proj", "up_proj")}
    fresh = init_adapter(jax.random.key(seed), sizes, layers=2, rank=2)
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(seed + 9), leaf.shape), fresh
    )


GLOBAL = bank_of(random_adapter(0))
LOCAL_C = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(random_adapter, (1, 2, 3)))


def branches_of(rows: slice):
    return dual_branches(GLOBAL, LOCAL_C, CLIENT_B[rows], WEIGHT_B[rows], scale=SCALE)


def unjitted(model, tokens_BT, length_B, branches, *, eos_id=22, new=NEW):
    return greedy(
        model,
        branches,
        prefill(model, branches, tokens_BT, length_B),
        length_B,
        stop_ids=(eos_id,),
        pad_id=0,
        max_new_tokens=new,
    )


answer = jax.jit(unjitted, static_argnames=("eos_id", "new"))


def batch(prompts) -> tuple[jax.Array, jax.Array]:
    length_B = np.array([len(prompt) for prompt in prompts])
    # Padding is full of a token that would be noticed.
    tokens_BT = np.full((len(prompts), length_B.max()), 17)
    for b, prompt in enumerate(prompts):
        tokens_BT[b, : len(prompt)] = prompt
    return jnp.asarray(tokens_BT, jnp.int32), jnp.asarray(length_B, jnp.int32)


@jax.jit
def forward(model, tokens_T, branches):
    """Hidden states and logits of one sequence without a cache."""
    T = tokens_T.shape[0]
    hidden_BTD, _ = model.hidden(
        tokens_T[None], jnp.arange(T)[None], causal_mask(jnp.ones((1, T), jnp.int32)), branches
    )
    return hidden_BTD[0], model.logits(hidden_BTD[0])


def uncached(model, row: int, eos_id: int) -> list[int]:
    """The whole sequence anew for every token; what comes later in it is not seen."""
    sequence = list(PROMPTS[row])
    for _ in range(NEW):
        tokens_T = jnp.array(sequence + [17] * (SLOTS - len(sequence)))
        _, logits_TV = forward(model, tokens_T, branches_of(slice(row, row + 1)))
        token = int(jnp.argmax(logits_TV[len(sequence) - 1]))
        if token == eos_id:
            break
        sequence.append(token)
    return sequence[len(PROMPTS[row]) :]


def test_cached_states_and_logits_equal_uncached(model):
    """To rounding, at the prompt's end and at every token of an answer that is fed in."""
    branches = branches_of(slice(None))
    tokens_BT, length_B = batch(PROMPTS)
    answer_BT = jax.random.randint(jax.random.key(5), (len(PROMPTS), NEW), 0, 23, jnp.int32)
    prompt = jax.jit(prefill)(model, branches, tokens_BT, length_B)
    hidden_UBD, cache = [prompt.last_hidden_BD], extended(prompt.cache, NEW)
    advance = jax.jit(step)
    for index in range(NEW):
        token_B1, slot = answer_BT[:, index : index + 1], tokens_BT.shape[1] + index
        hidden_B1D, cache = advance(model, branches, cache, token_B1, length_B + index, slot)
        hidden_UBD.append(hidden_B1D[:, 0])
    for row, tokens in enumerate(PROMPTS):
        sequence = [*tokens, *answer_BT[row].tolist()]
        tokens_T = jnp.array(sequence + [17] * (SLOTS - len(sequence)))
        hidden_TD, logits_TV = forward(model, tokens_T, branches_of(slice(row, row + 1)))
        own = slice(len(tokens) - 1, len(sequence))
        cached_UD = jnp.stack([hidden_BD[row] for hidden_BD in hidden_UBD])
        np.testing.assert_allclose(cached_UD, hidden_TD[own], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model.logits(cached_UD), logits_TV[own], rtol=1e-4, atol=1e-5)


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


def test_ends_with_the_longest_answer(model, monkeypatch):
    """Steps beyond the last row's end token would cost time and change nothing."""
    tokens_BT, length_B = batch(PROMPTS[:1] * 2)
    eos_id = uncached(model, 0, -1)[2]
    assert uncached(model, 0, -1).index(eos_id) == 2
    steps, logits = [], Model.logits

    def counted(self, hidden):
        jax.debug.callback(lambda: steps.append(1))
        return logits(self, hidden)

    monkeypatch.setattr(Model, "logits", counted)
    branches = dual_branches(
        GLOBAL, LOCAL_C, CLIENT_B[:1].repeat(2), WEIGHT_B[:1].repeat(2), scale=SCALE
    )
    # A program that another test compiled would not count.
    decoded = unjitted(model, tokens_BT, length_B, branches, eos_id=eos_id)
    jax.effects_barrier()
    assert decoded.length_B.tolist() == [2, 2]
    assert len(steps) == 3


def test_tokens_are_drawn_from_the_key_anew_at_every_step(model):
    """Logits that are all the same: what is drawn follows from key and step alone."""
    flat = jax.tree.map(jnp.zeros_like, model)
    tokens_BT, length_B = batch(PROMPTS)

    def drawn(seed: int, new: int = 12) -> list[list[int]]:
        return greedy(
            flat,
            (),
            prefill(flat, (), tokens_BT, length_B),
            length_B,
            stop_ids=(-1,),
            pad_id=0,
            max_new_tokens=new,
            key=jax.random.key(seed),
        ).tokens_BT.tolist()

    first = drawn(0)
    assert drawn(0) == first != drawn(1)
    # Rows and steps each have draws of their own.
    assert len({tuple(row) for row in first}) == len(PROMPTS)
    assert len({tuple(column) for column in zip(*first, strict=True)}) > 9
