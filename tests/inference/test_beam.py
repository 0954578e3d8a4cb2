"""Beam search and greedy decoding against `transformers`, merged models, and row by row."""

import functools
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.adapters.lora import Adapter, Branch, bank_of
from feddpa_jax.hf.families import read_hf_config
from feddpa_jax.inference.beam import beam_search
from feddpa_jax.inference.decode import Decoded, prefill
from feddpa_jax.inference.decode import decode as greedy
from feddpa_jax.models.decoder import Model, from_parameters
from tests.parity.reference_loop import hf_to_parameters

VOCABULARY, ROWS, PROMPT, ANSWER = 23, 8, 7, 12
# Not 0: padding must not look like a token that happens to be there already.
PAD = 22
SEEDS = (0, 1, 2, 3)

_prefill = jax.jit(prefill)
_greedy = jax.jit(greedy, static_argnames="max_new_tokens")
_STATIC = ("beams", "max_new_tokens", "length_penalty")
_beam = jax.jit(beam_search, static_argnames=_STATIC)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keeps threads from waiting for each other over tensors of a few numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def llama(seed: int) -> tuple[Any, Model]:
    """A random Llama whose next tokens depend on the whole prompt, in both libraries."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        tie_word_embeddings=False,
    )
    hf = transformers.LlamaForCausalLM(config).eval()
    ours = read_hf_config(hf.config.to_dict(), "test")
    return hf, from_parameters(ours, hf_to_parameters(hf))


@functools.cache
def prompts(seed: int) -> tuple[np.ndarray, ...]:
    """Prompts of unequal length, one of a single token and one of the greatest length."""
    draw = np.random.default_rng(seed)
    length_B = draw.permutation(np.r_[1, PROMPT, draw.integers(2, PROMPT, ROWS - 2)])
    return tuple(draw.integers(0, VOCABULARY, length).astype(np.int32) for length in length_B)


def generate(
    seed: int, beams: int, *, max_new_tokens: int, eos_id: list[int] | None, penalty: float = 1.0
) -> np.ndarray:
    """The new tokens that `transformers` generates for each row, padding included."""
    hf, _ = llama(seed)
    tokens_BT = np.full((ROWS, PROMPT), PAD)
    real_BT = np.zeros((ROWS, PROMPT), np.int64)
    for row, prompt in enumerate(prompts(seed)):
        tokens_BT[row, PROMPT - len(prompt) :] = prompt
        real_BT[row, PROMPT - len(prompt) :] = 1
    settings = transformers.GenerationConfig(
        num_beams=beams,
        do_sample=False,
        early_stopping=False,
        max_new_tokens=max_new_tokens,
        length_penalty=penalty,
        eos_token_id=eos_id,
        pad_token_id=PAD,
    )
    with torch.no_grad():
        out_BT = hf.generate(
            input_ids=torch.from_numpy(tokens_BT),
            attention_mask=torch.from_numpy(real_BT),
            generation_config=settings,
        )
    return out_BT[:, PROMPT:].numpy()


@functools.cache
def end_token(seed: int) -> int:
    """A token that the model often generates, in the middle of the answers."""
    free_BT = generate(seed, 2, max_new_tokens=ANSWER, eos_id=None)
    rows_V = [(free_BT[:, 2:] == token).any(1).sum() for token in range(VOCABULARY - 1)]
    return int(np.argmax(rows_V))


@functools.cache
def end_tokens(seed: int) -> tuple[int, ...]:
    """Three such tokens, the one that is generated most first."""
    free_BT = generate(seed, 2, max_new_tokens=ANSWER, eos_id=None)
    rows_V = [(free_BT[:, 2:] == token).any(1).sum() for token in range(VOCABULARY - 1)]
    return tuple(np.argsort(-np.array(rows_V), kind="stable")[:3].tolist())


@functools.cache
def expected(
    seed: int,
    beams: int,
    max_new_tokens: int,
    penalty: float = 1.0,
    stop_ids: tuple[int, ...] | None = None,
) -> list[list[int]]:
    """The answers of `transformers`, up to the first end token."""
    stop_ids = stop_ids or (end_token(seed),)
    options = {"max_new_tokens": max_new_tokens, "penalty": penalty}
    out_BT = generate(seed, beams, eos_id=list(stop_ids), **options)
    ends_B = [[t for t, token in enumerate(row) if token in stop_ids] for row in out_BT.tolist()]
    return [
        row[: ends[0]] if ends else row for row, ends in zip(out_BT.tolist(), ends_B, strict=True)
    ]


def prompt_arrays(rows: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts padded on the right, and their lengths."""
    tokens_BT = np.full((len(rows), PROMPT), PAD, np.int32)
    for row, prompt in enumerate(rows):
        tokens_BT[row, : len(prompt)] = prompt
    return tokens_BT, np.array([len(prompt) for prompt in rows], np.int32)


def decode(
    seed: int,
    beams: int | None,
    max_new_tokens: int = ANSWER,
    *,
    rows: tuple[np.ndarray, ...] | None = None,
    branches: tuple[Branch, ...] = (),
    model: Model | None = None,
    stop_ids: tuple[int, ...] | None = None,
    **settings: float,
) -> Decoded:
    """This project's answers; greedy where there is no number of beams."""
    model = llama(seed)[1] if model is None else model
    tokens_BT, length_B = prompt_arrays(prompts(seed) if rows is None else rows)
    ready = _prefill(model, branches, tokens_BT, length_B)
    stop_ids = stop_ids or (end_token(seed),)
    ends = {"stop_ids": stop_ids, "pad_id": PAD, "max_new_tokens": max_new_tokens}
    start = (model, branches, ready, length_B)
    return (
        _greedy(*start, **ends) if beams is None else _beam(*start, beams=beams, **ends, **settings)
    )


def answers(decoded: Decoded) -> list[list[int]]:
    """Each row's tokens; what follows them must be padding."""
    tokens_BT, length_B = np.asarray(decoded.tokens_BT), np.asarray(decoded.length_B)
    assert tokens_BT.dtype == length_B.dtype == np.int32
    assert all((row[length:] == PAD).all() for row, length in zip(tokens_BT, length_B, strict=True))
    return [row[:length].tolist() for row, length in zip(tokens_BT, length_B, strict=True)]


@pytest.mark.parametrize("max_new_tokens", [1, ANSWER])
@pytest.mark.parametrize("beams", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_same_tokens_as_transformers(seed: int, beams: int | None, max_new_tokens: int):
    """Greedy (None), which is also what one beam must come to, and beam search."""
    theirs = expected(seed, beams or 1, max_new_tokens)
    assert answers(decode(seed, beams, max_new_tokens)) == theirs


@pytest.mark.parametrize("beams", [None, 1, 2, 4])
def test_any_of_several_end_tokens_ends_an_answer(beams: int | None):
    matters = []
    for seed in SEEDS:
        stop_ids = end_tokens(seed)
        theirs = expected(seed, beams or 1, ANSWER, stop_ids=stop_ids)
        assert answers(decode(seed, beams, stop_ids=stop_ids)) == theirs
        # The first alone, and the others without it, would have ended other answers.
        for part in (stop_ids[:1], stop_ids[1:]):
            matters.append(theirs != expected(seed, beams or 1, ANSWER, stop_ids=part))
    assert sum(matters[0::2]) >= 3 and sum(matters[1::2]) >= 3


@pytest.mark.parametrize("penalty", [-1.0, 2.0])
def test_length_penalty_is_that_of_transformers(penalty: float):
    for seed in SEEDS:
        ours = answers(decode(seed, 4, length_penalty=penalty))
        assert ours == expected(seed, 4, ANSWER, penalty)


def test_cases_cover_what_beam_search_does():
    """The comparisons above see early ends, full answers, and beams and penalties that matter."""
    lengths, beam, other = [], [], []
    for seed in SEEDS:
        rows = expected(seed, 4, ANSWER)
        lengths += [len(row) for row in rows]
        beam += rows
        other += answers(decode(seed, None))
        assert rows != expected(seed, 2, ANSWER)
    assert sum(length < ANSWER - 1 for length in lengths) >= 8
    assert sum(length == ANSWER for length in lengths) >= 4
    assert len(set(lengths)) >= 4
    assert sum(one != two for one, two in zip(beam, other, strict=True)) >= 8
    penalized = [expected(seed, 4, ANSWER, penalty) for seed in SEEDS for penalty in (-1.0, 2.0)]
    assert penalized[0::2] != penalized[1::2]


@functools.cache
def random_adapters(clients: int) -> tuple[Adapter, Adapter]:
    """A global adapter and a bank of local ones, all far from zero."""
    config, draw = llama(0)[1].config, np.random.default_rng(7)

    def adapters(*leading: int) -> Adapter:
        def noise(*shape: int) -> jax.Array:
            return jnp.asarray(draw.normal(size=(*leading, config.layers, *shape)), jnp.float32)

        sizes = {target: config.target_sizes()[target] for target in ("q_proj", "down_proj")}
        return {target: {"a": noise(i, 2), "b": noise(2, o)} for target, (i, o) in sizes.items()}

    return adapters(), adapters(clients)


def merged(global_: Adapter, local_: Adapter, weight: float) -> Model:
    """The model of seed 0 with both adapters in its kernels, the local one at `weight`."""
    parameters = hf_to_parameters(llama(0)[0])
    for share, adapter in ((1.0 - weight, global_), (weight, local_)):
        for target, pair in adapter.items():
            block = "mlp" if target == "down_proj" else "attention"
            for layer, (a_DR, b_RE) in enumerate(zip(pair["a"], pair["b"], strict=True)):
                parameters[f"layers.{layer}.{block}.{target}.kernel"] += share * np.asarray(
                    a_DR @ b_RE
                )
    return from_parameters(llama(0)[1].config, parameters)


def test_rows_of_different_clients_equal_merged_models():
    global_, local_C = random_adapters(3)
    client_B, weight_B = np.array([2, 0, 1, 1, 2, 0, 0, 1]), np.linspace(0.0, 1.0, ROWS)
    branches = dual_branches(
        bank_of(global_),
        local_C,
        jnp.asarray(client_B),
        jnp.asarray(weight_B, jnp.float32),
        scale=1.0,
    )
    together = answers(decode(0, 4, branches=branches))
    for row in range(ROWS):
        local_ = jax.tree.map(lambda leaf, c=client_B[row]: leaf[c], local_C)
        model = merged(global_, local_, float(weight_B[row]))
        assert answers(decode(0, 4, model=model))[row] == together[row]


def test_rows_of_different_clients_equal_each_row_alone():
    global_, local_C = random_adapters(3)
    global_1 = bank_of(global_)
    client_B = jnp.array([2, 0, 1, 1, 2, 0, 0, 1])
    weight_B = jnp.linspace(0.0, 1.0, ROWS)
    together = answers(
        decode(0, 4, branches=dual_branches(global_1, local_C, client_B, weight_B, scale=1.0))
    )
    for row, prompt in enumerate(prompts(0)):
        own = dual_branches(
            global_1, local_C, client_B[row : row + 1], weight_B[row : row + 1], scale=1.0
        )
        assert answers(decode(0, 4, rows=(prompt,), branches=own)) == [together[row]]
    # Other clients, other weights or no adapters would have been noticed.
    for clients_B, weights_B in ((client_B[::-1], weight_B), (client_B, weight_B[::-1])):
        changed = dual_branches(global_1, local_C, clients_B, weights_B, scale=1.0)
        assert answers(decode(0, 4, branches=changed)) != together
    assert answers(decode(0, 4)) != together


def test_one_compilation_a_shape(monkeypatch: pytest.MonkeyPatch):
    chex.clear_trace_counter()
    once = chex.assert_max_traces(beam_search, n=1)
    monkeypatch.setitem(globals(), "_beam", jax.jit(once, static_argnames=_STATIC))
    for seed in SEEDS:
        decode(seed, 2)
