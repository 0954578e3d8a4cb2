"""One prompt at a time, layer by layer, gives what whole programs give; and compiles little."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.lora import bank_of, init_adapter, take
from feddpa_jax.inference.answerer import Answerer, Prompt
from feddpa_jax.inference.layerwise import Layerwise
from feddpa_jax.inference.scorer import Request, Scorer
from feddpa_jax.inference.single import SingleScorer, answer_greedily, answer_with_beams
from feddpa_jax.models.decoder import Model
from feddpa_jax.models.model_config import Rope
from feddpa_jax.testing import tiny_model
from feddpa_jax.types import TokenizedExample

SCALE, STOP, NEW = 2.0, (3,), 6
PLAIN = tiny_model(layers=3)
# Two of three layers see a window, in which positions turn otherwise.
WINDOWS = tiny_model(
    layers=3,
    family="gemma3_text",
    window=4,
    local_layers=(0, 2),
    local_rope=Rope(100.0),
    embedding_scale=32**0.5,
    norm_offset=1.0,
    post_norms=True,
    qk_norm=True,
    tied=False,
)
MIXES = ((0.0, 1.0), (1.0, 0.0), (0.4, 0.6), (np.array([0.2, 0.9, 0.0]), np.array([0.8, 0.1, 1])))


def adapter(model: Model, seed: int) -> dict:
    sizes = {t: model.config.target_sizes()[t] for t in ("q_proj", "down_proj")}
    fresh = init_adapter(jax.random.key(seed), sizes, layers=3, rank=2)
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(seed + 9), leaf.shape), fresh
    )


def adapters(model: Model) -> Adapters:
    local_C = jax.tree.map(lambda *x: jnp.stack(x), adapter(model, 1), adapter(model, 2))
    return Adapters(bank_of(adapter(model, 0)), local_C, SCALE)


def layerwise(model: Model, client: int, longest: int = 20) -> Layerwise:
    global_1, local_1, scale, *_ = adapters(model).of(client)
    return Layerwise(model, global_1, local_1, scale=scale, longest=longest, room=3 * NEW)


def examples() -> list[TokenizedExample]:
    draw = np.random.default_rng(0)
    lengths = (20, 5, 11, 9)
    return [TokenizedExample(draw.integers(4, 250, n).astype(np.int32), n - 3) for n in lengths]


@pytest.mark.parametrize("model", [PLAIN, WINDOWS], ids=["plain", "windows"])
def test_scores_are_those_of_packed_blocks(model: Model):
    requests = [Request(1, example, *mix) for example, mix in zip(examples(), MIXES, strict=True)]
    packed = Scorer.for_examples(model, adapters(model), examples(), block_tokens=64)
    single = SingleScorer(layerwise(model, client=1), adapters(model))
    done = []
    for layers in (None, [0, 2, 3]):
        expected = packed(requests, layers=layers)
        found = single(requests, done.append, layers=layers)
        for name in ("last_ILD", "mean_ILD"):
            np.testing.assert_allclose(
                getattr(found, name), getattr(expected, name), atol=2e-5, err_msg=name
            )
    assert done == [1] * 8
    found = single(requests, layers=())
    np.testing.assert_allclose(found.nll_I, expected.nll_I, atol=2e-5)
    np.testing.assert_allclose(found.entropy_I, expected.entropy_I, atol=2e-5)
    assert found.greedy_I.tolist() == expected.greedy_I.tolist()


@pytest.mark.parametrize("model", [PLAIN, WINDOWS], ids=["plain", "windows"])
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_batches(model: Model, beams: int):
    prompts = [
        Prompt(client, example.tokens_T, *mix)
        for client in (0, 1)
        for example, mix in zip(examples(), MIXES, strict=True)
    ]
    # The tokens that end answers are chosen so that some end early, one of them at once.
    everything = Answerer(model, adapters(model), stop_ids=(-1,), pad_id=0, max_new_tokens=NEW)
    spoken = everything(prompts)
    stop = (int(spoken[0][0]), int(spoken[3][2]))
    expected = Answerer(
        model, adapters(model), stop_ids=stop, pad_id=0, max_new_tokens=NEW, beams=beams
    )(prompts)
    assert {0, NEW} <= {len(answer) for answer in expected} or beams > 1
    for client in (0, 1):
        one = layerwise(model, client)
        for prompt, answer in zip(prompts, expected, strict=True):
            if prompt.client != client:
                continue
            asked = (one, prompt.tokens_T, prompt.global_weight, prompt.local_weight)
            if beams == 1:
                found = answer_greedily(*asked, stop_ids=stop, max_new_tokens=NEW)
            else:
                found = answer_with_beams(*asked, beams=beams, stop_ids=stop, max_new_tokens=NEW)
            assert found.tolist() == answer.tolist()


@pytest.mark.parametrize("missing", ["global_C", "local_C"])
def test_a_method_with_one_adapter(missing: str):
    have = adapters(PLAIN)._replace(**{missing: None})
    own = have.local_C and take(have.local_C, np.array([0]))
    one = Layerwise(PLAIN, have.global_C, own, scale=SCALE, longest=20, room=NEW)
    asked = examples()[0].tokens_T
    expected = Answerer(PLAIN, have, stop_ids=(-1,), pad_id=0, max_new_tokens=NEW)
    found = answer_greedily(one, asked, 0.3, 0.7, stop_ids=(-1,), max_new_tokens=NEW)
    assert [found.tolist()] == [a.tolist() for a in expected([Prompt(0, asked, 0.3, 0.7)])]


def test_a_layer_is_compiled_once_for_prompts_and_once_for_answers():
    """Whatever the number of layers; and another prompt of another client needs nothing new."""
    # No other test has these sizes.
    model = tiny_model(layers=3, ffn=40)
    compiled: list[str] = []

    def note(event: str, duration_secs: float, **about: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(about["fun_name"])

    def ask(client: int, tokens: int) -> None:
        one = layerwise(model, client, longest=tokens)
        requests = [Request(0, example, 0.0, 1.0) for example in examples()[1:]]
        SingleScorer(one, adapters(model))(requests)
        answer_greedily(one, np.arange(4, 4 + tokens), 0.5, 0.5, stop_ids=(-1,), max_new_tokens=NEW)

    adapters(model)
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        ask(0, 20)
        first, compiled[:] = list(compiled), []
        ask(1, 31)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    of_layers = [name for name in first if "_layer" in name]
    assert len(of_layers) == 2 and len(first) < 16
    assert compiled == []
