"""A weight for every token: by hand, and the same however a prompt and its answer are computed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.token_gate import TokenGate, gates_of_rows, rest_of
from feddpa_jax.inference.answerer import Answerer, Prompt
from feddpa_jax.inference.layerwise import Layerwise
from feddpa_jax.inference.mixture import make_mixtures
from feddpa_jax.inference.scorer import Request, Scorer
from feddpa_jax.inference.single import SingleScorer, answer_greedily, answer_with_beams
from feddpa_jax.testing import tiny_model
from feddpa_jax.types import TokenizedExample
from tests.weighting.test_learned_rules import bank

MODEL = tiny_model()
ADAPTERS = Adapters(bank(0), bank(1, 2), 2.0)
L, D = MODEL.config.layers, MODEL.config.width
DRAW = np.random.default_rng(3)
STEPS = 6


def gate(soft: bool) -> TokenGate:
    return TokenGate(
        (2.0 * DRAW.normal(size=(L, D))).astype(np.float32),
        np.full(L, 0.0 if soft else 0.4, np.float32),
        np.full(L, soft),
    )


GATES = {0: gate(True), 1: gate(False)}


def examples() -> list[TokenizedExample]:
    lengths = (20, 7, 13)
    return [TokenizedExample(DRAW.integers(4, 250, n).astype(np.int32), n - 4) for n in lengths]


EXAMPLES = examples()


def test_weights_by_hand():
    # |x| = 5: unit (0.6, 0.8); v . unit = 0.6 * 1 + 0.8 * 2 = 2.2, less 1.5: 0.7.
    x_BTD = jnp.array([[[3.0, 4.0], [-3.0, 0.0], [0.0, 9.0]]])
    leaves = (jnp.array([[1.0, 2.0]]), jnp.array([-1.5]))
    clipped, soft = (TokenGate(*leaves, jnp.array([soft])) for soft in (False, True))
    # The others: -1 - 1.5 and 2 - 1.5.
    np.testing.assert_allclose(clipped.weights(x_BTD), [[0.7, 0.0, 0.5]], atol=1e-6)
    expected = 1 / (1 + np.exp([[-0.7, 2.5, -0.5]]))
    np.testing.assert_allclose(soft.weights(x_BTD), expected, atol=1e-6)
    for one in (clipped, soft):
        np.testing.assert_allclose(one.rest().weights(x_BTD), 1 - one.weights(x_BTD), atol=1e-6)
    np.testing.assert_allclose(clipped.scaled(0.5).weights(x_BTD), [[0.35, 0.0, 0.25]], atol=1e-6)
    apart = rest_of((clipped, jnp.array([0.25])))
    np.testing.assert_allclose(apart[0].weights(x_BTD), [[0.3, 1.0, 0.5]], atol=1e-6)
    assert apart[1].tolist() == [0.75]


def test_rows_without_a_gate_keep_their_weights():
    rows = gates_of_rows([0.3, GATES[0], np.array([0.0, 1.0])], L, D)
    for layer, own in enumerate(rows.by_layer()):
        found_BT = own.weights(jnp.asarray(DRAW.normal(size=(3, 4, D)), jnp.float32))
        np.testing.assert_array_equal(found_BT[0], np.float32(0.3))
        np.testing.assert_array_equal(found_BT[2], float(layer))
        assert np.ptp(found_BT[1]) > 0.1


@functools.cache
def plain(client: int, tokens: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """By hand: layer by layer, weights from what enters it; log-probabilities and weights [L, T].

    The weighted sum of both adapters is put into a copy of the frozen kernels for each token.
    """
    T = len(tokens)
    weights_LT = np.zeros((L, T))
    module = MODEL.module()
    x_TD = np.asarray(module.embed.embedding[...])[np.array(tokens)]
    gate, (shared, own_C, scale, *_) = GATES[client], ADAPTERS
    assert shared is not None and own_C is not None
    for layer in range(L):
        unit_TD = x_TD / np.linalg.norm(x_TD, axis=-1, keepdims=True)
        value_T = unit_TD @ gate.direction[layer] + gate.bias[layer]
        w_T = 1 / (1 + np.exp(-value_T)) if gate.soft[layer] else np.clip(value_T, 0, 1)
        weights_LT[layer] = w_T
        parameters = {}
        for target in ("q_proj", "v_proj"):
            kernel = np.asarray(getattr(module.layers[layer].attention, target).kernel[...])
            g, l = (
                scale * np.asarray(bank[target]["a"][at, layer] @ bank[target]["b"][at, layer])
                for bank, at in ((shared, 0), (own_C, client))
            )
            parameters[target] = (
                kernel[None] + (1 - w_T)[:, None, None] * g + w_T[:, None, None] * np.asarray(l)
            )
        x_TD = block(layer, x_TD, parameters)
    hidden_TD = module.norm(jnp.asarray(x_TD))
    return np.asarray(jax.nn.log_softmax(MODEL.logits(hidden_TD))), weights_LT


def block(layer: int, x_TD: np.ndarray, kernels: dict[str, np.ndarray]) -> np.ndarray:
    """One layer in numpy, q and v of each token by its own kernel; grouped-query attention."""
    own, config = MODEL.module().layers[layer], MODEL.config
    T, H = len(x_TD), config.head_dim
    in_TD = np.asarray(own.attention_norm(jnp.asarray(x_TD)))
    q = np.einsum("td,tde->te", in_TD, kernels["q_proj"]).reshape(T, -1, H)
    v = np.einsum("td,tde->te", in_TD, kernels["v_proj"]).reshape(T, -1, H)
    k = (in_TD @ np.asarray(own.attention.k_proj.kernel[...])).reshape(T, -1, H)
    angle = np.arange(T)[:, None] * np.asarray(config.rope.frequencies(H))[None]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def turn(y):
        first, second = np.split(y, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    q, k = turn(q), turn(k)
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    score = np.einsum("tnh,snh->nts", q, k) / H**0.5
    score = np.where(np.tri(T, dtype=bool)[None], score, -np.inf)
    share = np.exp(score - score.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    mixed = np.einsum("nts,snh->tnh", share, v).reshape(T, -1)
    x_TD = x_TD + mixed @ np.asarray(own.attention.o_proj.kernel[...])
    out = own.mlp(own.mlp_norm(jnp.asarray(x_TD))[None], (), layer=layer, holds=False)
    return x_TD + np.asarray(out)[0]


def requests() -> list[Request]:
    return [
        Request(client, example, GATES[client].rest(), GATES[client])
        for client in (0, 1)
        for example in EXAMPLES
    ]


def layerwise(client: int) -> Layerwise:
    one = ADAPTERS.of(client)
    return Layerwise(MODEL, one.global_C, one.local_C, scale=2.0, longest=20, room=3 * STEPS)


def test_scores_are_those_by_hand():
    """In packed blocks, alone, and as a function of weights."""
    packed = Scorer.for_examples(MODEL, ADAPTERS, EXAMPLES, block_tokens=80)(requests())
    assert packed.gated_IL is not None
    for i, (client, example, g, l) in enumerate(requests()):
        logp_TV, weights_LT = plain(client, tuple(example.tokens_T.tolist()))
        at = np.arange(example.prompt_length - 1, len(example.tokens_T) - 1)
        nll = -logp_TV[at, example.tokens_T[example.prompt_length :]].mean()
        mean_L = weights_LT[:, : example.prompt_length].mean(axis=1)
        assert packed.nll_I[i] == pytest.approx(nll, abs=1e-4)
        np.testing.assert_allclose(packed.gated_IL[i], mean_L, atol=1e-4)
        single = layerwise(client)
        alone = SingleScorer(single, ADAPTERS.of(client))([Request(0, example, g, l)], layers=())
        assert alone.nll_I[0] == pytest.approx(nll, abs=1e-4)
        prompt_T = example.tokens_T[: example.prompt_length]
        found_L = single.gated(single.prompt(prompt_T, g, l), len(prompt_T), GATES[client])
        np.testing.assert_allclose(found_L, mean_L, atol=1e-4)
    for client, of in enumerate(make_mixtures(MODEL, ADAPTERS, [EXAMPLES] * 2, answers=True)):
        loss_I = of.loss(jax.tree.map(jnp.asarray, GATES[client]))
        np.testing.assert_allclose(loss_I, packed.nll_I[3 * client :][:3], atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_whole_passes(beams: int):
    """In batches with other weights, and alone; greedy answers are the argmax of whole passes."""
    prompts = [
        Prompt(r.client, r.example.tokens_T[: r.example.prompt_length], *r[2:]) for r in requests()
    ]
    others = [dataclasses.replace(p, global_weight=0.6, local_weight=0.4) for p in prompts]
    ends = {"stop_ids": (-1,), "max_new_tokens": STEPS}
    answerer = Answerer(MODEL, ADAPTERS, pad_id=0, beams=beams, **ends)
    found = answerer([*prompts, *others])
    fixed = answerer(others)
    assert [answer.tolist() for answer in found[6:]] == [answer.tolist() for answer in fixed]
    for prompt, answer in zip(prompts, found, strict=False):
        weights = (prompt.global_weight, prompt.local_weight)
        one = (layerwise(prompt.client), prompt.tokens_T, *weights)
        if beams > 1:
            alone = answer_with_beams(*one, beams=beams, **ends)
        else:
            alone = answer_greedily(*one, **ends)
            whole = (*prompt.tokens_T.tolist(), *answer.tolist())
            logp_TV, _ = plain(prompt.client, whole)
            likeliest_T = logp_TV.argmax(axis=-1)[len(prompt.tokens_T) - 1 : -1]
            assert likeliest_T.tolist() == answer.tolist()
        assert alone.tolist() == answer.tolist()
    assert any(a.tolist() != b.tolist() for a, b in zip(found, fixed, strict=False))


def test_no_weight_depends_on_later_tokens():
    tokens_T = EXAMPLES[0].tokens_T
    _, whole_LT = plain(1, tuple(tokens_T.tolist()))
    _, cut_LT = plain(1, tuple(tokens_T[:9].tolist()))
    np.testing.assert_allclose(whole_LT[:, :9], cut_LT, atol=1e-6)
    assert np.ptp(whole_LT, axis=1).min() > 0.1
