"""Rows that are replaced as they end: the answers are each prompt's own, and no cache is copied."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.lora import bank_of, init_adapter
from feddpa_jax.inference import answerer as module
from feddpa_jax.inference.answerer import Answerer, Prompt, Waiting, group_for, rows_for
from feddpa_jax.inference.continuous import Asked, Search, admit, ended_rows, go_on
from feddpa_jax.models.kv_cache import empty_cache, with_rows
from feddpa_jax.testing import tiny_model

MODEL = tiny_model(layers=2, vocab_size=64)
NEW, CLIENTS = 10, 3


def adapter(seed: int) -> dict:
    sizes = {t: MODEL.config.target_sizes()[t] for t in ("q_proj", "down_proj")}
    fresh = init_adapter(jax.random.key(seed), sizes, layers=2, rank=2)
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(seed + 9), leaf.shape), fresh
    )


ADAPTERS = Adapters(
    bank_of(adapter(0)), jax.tree.map(lambda *x: jnp.stack(x), *map(adapter, (1, 2, 3))), 2.0
)
STOPS = tuple(range(0, 64, 9))


def prompts(count: int = 23) -> list[Prompt]:
    draw = np.random.default_rng(0)
    return [
        Prompt(i % CLIENTS, draw.integers(0, 64, draw.integers(2, 9)).astype(np.int32), 1 - w, w)
        for i, w in zip(range(count), itertools.cycle((0.0, 0.3, 1.0, 0.6)), strict=False)
    ]


def answers(asked: list[Prompt], tokens: int, beams: int) -> tuple[list[list[int]], list[int]]:
    done: list[int] = []
    ends = {"stop_ids": STOPS, "pad_id": 0, "max_new_tokens": NEW}
    answer = Answerer(MODEL, ADAPTERS, beams=beams, batch_tokens=tokens, **ends)
    return [own.tolist() for own in answer(asked, done.append)], done


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_depend_on_no_other_rows(beams: int, monkeypatch: pytest.MonkeyPatch):
    """All at once, a few rows that are replaced again and again, in another order, and alone."""
    asked = prompts()
    together, done = answers(asked, 10**6, beams)
    assert sum(done) == len(asked)
    lengths = [len(own) for own in together]
    assert min(lengths) < 3 and max(lengths) == NEW and len(set(map(tuple, together))) > 15
    clocks = []

    def noted(*given, **how):
        found = go_on(*given, **how)
        clocks.append(int(found.rows.clock_1[0]))
        return found

    monkeypatch.setattr(module, "go_on", noted)
    # Five rows of 8 + 10 tokens and each beam's.
    few = 5 * (8 + NEW * beams) // 4 + 1
    turned, done = answers(asked[::-1], few, beams)
    assert turned[::-1] == together
    assert sum(done) == len(asked) and len(done) > 4
    # Slots were used more than once, and rows did not wait for the longest beside them.
    assert NEW < clocks[-1] < NEW * len(asked) / 5
    alone, _ = answers(asked[4:5], few, beams)
    assert alone == [together[4]]


def test_longest_expected_answers_begin_first(monkeypatch: pytest.MonkeyPatch):
    first: list[list[int]] = []
    admit = module.admit

    def noted(model, banks, state, tokens_AT, length_A, *given, **how):
        first.append(np.asarray(tokens_AT)[:, 0].tolist())
        return admit(model, banks, state, tokens_AT, length_A, *given, **how)

    monkeypatch.setattr(module, "admit", noted)
    asked = [
        Prompt(0, np.array([token, 1], np.int32), 0.5, 0.5, expected)
        for token, expected in ((3, 1), (4, 9), (5, 2), (6, 9))
    ]
    answers(asked, 10**6, 1)
    assert [token for group in first for token in group] == [4, 6, 5, 3]


@pytest.mark.parametrize("beams", [1, 4])
def test_a_step_copies_no_cache(beams: int):
    """What the compiled steps hold besides their arguments is less than the caches."""
    model = tiny_model(layers=4)
    rows, length, search = 4, 512, Search(beams, 128, (1,), 0)
    state = ended_rows(model, rows=rows, length=length, search=search, mesh=None)
    own = jnp.full(rows, 0.5)
    asked = Asked(jnp.zeros(rows, jnp.int32), own, own)
    how = {"scale": 1.0, "search": search, "mesh": None}
    program = go_on.lower(model, (None, None), state, asked, jnp.array([rows]), **how).compile()
    caches = sum(leaf.nbytes for leaf in jax.tree.leaves(state.cache.layers))
    held = program.memory_analysis()
    assert held is not None
    # The scores of a layer take a quarter of a layer's cache a beam.
    assert held.temp_size_in_bytes < caches / 2
    # Donated: the new caches lie where the old ones were.
    assert held.alias_size_in_bytes > caches


def test_rows_are_put_whole():
    config = MODEL.config
    old, new = empty_cache(config, 3, 6, "float32"), empty_cache(config, 2, 4, "float32")
    old = jax.tree.map(lambda leaf: jnp.full_like(leaf, 7), old)
    new = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1), new)
    # The second one goes nowhere.
    cache = with_rows(old, jnp.array([1, 3]), new)
    assert (cache.position_BS[1, :4] == 1).all() and (cache.position_BS[1, 4:] > 10**6).all()
    assert (cache.position_BS[::2] == 7).all()
    for layer in cache.layers:
        assert (layer.k_BKHS[1, ..., :4] == 1).all() and (layer.v_BKSH[1, :, :4] == 1).all()
        assert (layer.k_BKHS[::2] == 7).all() and (layer.v_BKSH[::2] == 7).all()


def test_rows_and_groups_are_within_what_is_asked_and_what_fits():
    search = Search(4, 20, (0,), 0)
    assert rows_for(7, 100, search, 4096) == 8 and group_for("cpu", 8, 100, 4096) == 2
    most = 4 * 4096 // 180
    assert rows_for(1000, 100, search, 4096) == most
    assert [group_for(p, most, 100, 4096) for p in ("cpu", "gpu")] == [5, 22]
    # A prompt longer than all that may be computed at once is computed alone.
    assert rows_for(1000, 500, search, 100) == 1 and group_for("cpu", 1, 500, 100) == 1


def test_waiting_prompts_come_in_their_order():
    waiting = Waiting([30, 3, 8, 9, 40], [8, 16, 40])
    seen = []
    while waiting:
        length, queue = waiting.next()
        seen.append((length, queue.popleft()))
    assert seen == [(40, 0), (8, 1), (8, 2), (16, 3), (40, 4)] and len(waiting) == 0


@pytest.mark.parametrize("beams", [1, 3])
def test_short_prompts_are_put_in_shorter_programs(beams: int, monkeypatch: pytest.MonkeyPatch):
    """Into the same caches: one program of steps, two of prompts, and each prompt's own answer."""
    asked = prompts(12)
    draw = np.random.default_rng(1)
    for i in range(0, 12, 3):
        long_T = draw.integers(0, 64, 20 + i).astype(np.int32)
        asked[i] = dataclasses.replace(asked[i], tokens_T=long_T, expected=i % 2)
    alone = [answers([own], 10**6, beams)[0][0] for own in asked]
    # 8 x 8 + 4 x 32 tokens and two costs against 12 x 32 and one: of prompts alone, half the cost.
    monkeypatch.setattr(module, "compile_tokens", lambda platform: 300)
    widths, steps = set(), set()

    def noted(model, banks, state, tokens_AT, *given, **how):
        widths.add(tokens_AT.shape[1])
        return admit(model, banks, state, tokens_AT, *given, **how)

    def stepped(model, banks, state, *given, **how):
        steps.add(state.cache.position_BS.shape)
        return go_on(model, banks, state, *given, **how)

    monkeypatch.setattr(module, "admit", noted)
    monkeypatch.setattr(module, "go_on", stepped)
    few = 3 * (32 + NEW * beams) // 4 + 1
    together, done = answers(asked, few, beams)
    assert together == alone and sum(done) == 12 and len(done) > 2
    assert widths == {8, 32} and len(steps) == 1
